"""A cache of a frozen vision tower's tokens of Still Life, so that a training never runs the tower.

Each picture is kept in two views: as it is, and framed anew in one way of its own. A training that reads them
knows these two, where one that runs the tower draws a new framing at every visit.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from escdiff.data.arrays import StillLifeArrays
from escdiff.data.images import expand
from escdiff.data.index import Index, Shard
from escdiff.data.latents import cache_file, encode_dataset, missing
from escdiff.data.views import reframe
from escdiff.errors import UserError

PLAIN, FRAMED = "plain", "framed"
VIEWS, NAME = (PLAIN, FRAMED), "tokens"
SEED = 71  # of the framings


def own_framing(picture: Tensor, row: int) -> Tensor:
    """The second view of picture `row` (C, H, W) in [-1, 1], or of its mask."""
    return reframe(picture, np.random.default_rng([SEED, row]))


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
    index, arrays = Index.load(folder), StillLifeArrays(folder)
    todo = sum(shard.samples for view in VIEWS for shard in missing(folder, index, f"{key}-{view}", NAME))
    if (needed := 2 * values * todo) > shutil.disk_usage(folder).free:
        what = f"the disk of {folder} lacks room for {needed / 1e9:.1f} GB of tokens"
        raise UserError(f"{what}; make room, or train with data.tokens=null")
    for view in VIEWS:
        pictures = partial(_pictures, arrays, index, view == FRAMED, batch_size)
        encode_dataset(folder, encode_fn, f"{key}-{view}", device=device, name=NAME, pictures=pictures)


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
            what = f"{self.folder} has no tokens of key {key} for some of its pictures"
            raise UserError(f"{what}; start the training with data.tokens=auto, which makes them")
        self._shards = [shard for shard in index.shards if shard.samples]
        self._firsts = np.cumsum([0, *(shard.samples for shard in self._shards)])
        self._open: dict[tuple[int, bool], Any] = {}

    def __call__(self, rows: Sequence[int], framed: Sequence[bool]) -> Tensor:
        return torch.stack([self._row(int(row), bool(view)) for row, view in zip(rows, framed, strict=True)])

    def _row(self, row: int, framed: bool) -> Tensor:
        number = int(np.searchsorted(self._firsts, row, "right")) - 1
        if (number, framed) not in self._open:  # mapped, not read
            path = cache_file(self.folder, NAME, f"{self.key}-{VIEWS[framed]}", self._shards[number])
            self._open[number, framed] = safe_open(path, "pt").get_slice(NAME)
        return self._open[number, framed][row - int(self._firsts[number])]

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the files itself."""
        return {**self.__dict__, "_open": {}}


def _pictures(arrays: StillLifeArrays, index: Index, framed: bool, batch_size: int, shard: Shard) -> Iterator[Tensor]:
    first = index.first_sample(shard)
    ends = [*range(first, first + shard.samples, batch_size), first + shard.samples]
    for start, end in pairwise(ends):
        pixels = arrays.pixels(slice(start, end))
        yield torch.stack([own_framing(p, start + i) for i, p in enumerate(pixels)]) if framed else pixels
