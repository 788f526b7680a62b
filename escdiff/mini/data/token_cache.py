"""A cache of a frozen vision tower's tokens of Still Life, so that no step of a training runs the tower.

Each picture is kept in two views: as it is, and framed anew in one way of its own. A training that reads them
knows these two, where one that runs the tower draws a new framing at every visit.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from escdiff.data.index import Index, Shard
from escdiff.data.latent_cache import Pictures, encode_dataset, missing, shard_file
from escdiff.data.pictures import expand
from escdiff.data.views import reframe, reframe_both
from escdiff.mini.data.arrays import array_pictures
from escdiff.support.errors import UserError

SEED = 71  # of the framings; another one whenever `reframe` does something else
PLAIN, FRAMED = "plain", f"framed{SEED}"
VIEWS, NAME = (PLAIN, FRAMED), "tokens"


def own_framing(picture: Tensor, row: int) -> Tensor:
    """The second view of picture `row` (C, H, W) in [-1, 1]."""
    return reframe(picture, np.random.default_rng([SEED, row]))


def own_mask(mask: Tensor, row: int) -> Tensor:
    """The mask (1, H, W) of that view."""
    return reframe_both(mask[:0], mask, np.random.default_rng([SEED, row]))[1]


def encode_tokens(
    folder: str | os.PathLike,
    encode_fn: Callable[[Tensor], Tensor],
    key: str,
    values: int,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
) -> None:
    """Encode both views of every picture that is not yet in the cache.

    Args:
        encode_fn: pixels (B, 3, H, W) in [-1, 1] on `device` -> tokens (B, values).
        key: of the tower, the picture size and what is kept of it.

    Raises:
        UserError: no finished Still Life there, a damaged shard, or too little room on the disk.
    """
    folder = expand(folder)
    index = Index.load(folder)
    todo = sum(shard.samples for view in VIEWS for shard in missing(folder, index, f"{key}-{view}", NAME))
    if (needed := 2 * values * todo) > shutil.disk_usage(folder).free:
        problem = f"the disk of {folder} lacks room for {needed / 1e9:.1f} GB of tokens"
        raise UserError(f"{problem}; make room, or train with data.tokens=null")
    shown = partial(array_pictures, folder, batch_size=batch_size)
    for view, pictures in ((PLAIN, shown), (FRAMED, partial(_framed, index, shown))):
        encode_dataset(folder, encode_fn, f"{key}-{view}", batch_size, device=device, name=NAME, pictures=pictures)


def tokens_missing(folder: str | os.PathLike, key: str) -> bool:
    """Whether any picture of a dataset lacks its tokens."""
    folder = expand(folder)
    index = Index.load(folder)
    return any(missing(folder, index, f"{key}-{view}", NAME) for view in VIEWS)


class StoredTokens:
    """Reads the cache: rows and the view of each -> tokens (n, values) float16.

    Raises:
        UserError: the cache is missing or incomplete.
    """

    def __init__(self, folder: str | os.PathLike, key: str) -> None:
        self.folder, self.key = expand(folder), key
        index = Index.load(self.folder)
        if tokens_missing(self.folder, key):
            problem = f"{self.folder} has no tokens of key {key} for some of its pictures"
            raise UserError(f"{problem}; start the training with data.tokens=auto, which makes them")
        self._shards = index.filled
        self._firsts = np.cumsum([0, *(shard.samples for shard in self._shards)])
        with safe_open(self.folder / shard_file(f"{key}-{PLAIN}", self._shards[0], NAME), "pt") as file:
            self.values = file.get_slice(NAME).get_shape()[1]

    def __call__(self, rows: Sequence[int], framed: Sequence[bool]) -> Tensor:
        tokens = np.empty((len(rows), self.values), np.float16)
        with ExitStack() as files:
            places = self._places(files, rows, framed)
            for file, offset in places:
                if hasattr(os, "posix_fadvise"):  # the disk works on all rows at once; mapped files read them by pages
                    os.posix_fadvise(file.fileno(), offset, tokens[0].nbytes, os.POSIX_FADV_WILLNEED)
            for row, (file, offset) in zip(tokens, places, strict=True):
                file.seek(offset)
                if file.readinto(row) != row.nbytes:
                    raise UserError(f"{file.name} ends too early; delete it and start with data.tokens=auto again")
        return torch.from_numpy(tokens)

    def _places(self, files: ExitStack, rows: Sequence[int], framed: Sequence[bool]) -> list[tuple[BinaryIO, int]]:
        """Of each row the file, opened once, and where in it the row begins."""
        opened: dict[tuple[int, bool], tuple[BinaryIO, int]] = {}
        places = []
        numbers = np.searchsorted(self._firsts, rows, "right") - 1
        for row, number, view in zip(rows, numbers.tolist(), map(bool, framed), strict=True):
            if (number, view) not in opened:
                path = self.folder / shard_file(f"{self.key}-{VIEWS[view]}", self._shards[number], NAME)
                file = files.enter_context(path.open("rb", buffering=0))
                # safetensors: the header's length, the header, the one tensor
                opened[number, view] = file, 8 + int.from_bytes(file.read(8), "little")
            file, start = opened[number, view]
            places.append((file, start + 2 * self.values * int(row - self._firsts[number])))
        return places


def _framed(index: Index, shown: Pictures, shard: Shard) -> Iterator[Tensor]:
    """A shard's pictures, each in its own framing."""
    row = index.first_sample(shard)
    for pixels in shown(shard):
        yield torch.stack([own_framing(picture, row + i) for i, picture in enumerate(pixels)])
        row += len(pixels)
