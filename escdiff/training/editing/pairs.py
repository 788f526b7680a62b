"""Pairs of pictures before and after an edit, with the instruction that leads from one to the other.

They lie in shards as two samples in a row, whose json says `"side": "before"` and then `"after"`, and in both the
`"instruction"`; as `python -m data_prep still-life --edits 1` renders them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from escdiff.backbone import Backbone
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.latent_cache import load_latents, pictures_of, vae_key
from escdiff.data.pictures import expand
from escdiff.data.shard_store import is_address
from escdiff.data.shards import read_shard
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError
from escdiff.training.loop.prepare_data import ensure_latents

BATCH = 64  # pictures encoded at once


@dataclass(frozen=True)
class Pair:
    """The samples' numbers in their dataset."""

    before: int
    after: int
    instruction: str


def read_pairs(folder: Path, index: Index) -> list[Pair]:
    """All pairs of a dataset, in its order; what belongs to none is passed over.

    Raises:
        UserError: there are none.
    """
    pairs, last, number = [], None, 0
    for shard in index.filled:
        for sample in read_shard(folder / shard.name, only=(schema.META,)):
            meta = sample.get(schema.META) or {}
            side, text = meta.get("side"), meta.get("instruction")
            if side == "after" and last == ("before", text) and text:
                pairs.append(Pair(number - 1, number, text))
            last, number = (side, text), number + 1
    if not pairs:
        raise UserError(
            f'{folder} holds no pairs; expected two samples in a row whose json says "side": "before", then "after", '
            'and the same "instruction", as `python -m data_prep still-life --edits 1` makes them'
        )
    return pairs


class EditPairs(Dataset):
    """Batches with "before" and "after", moments (B, 2C, h, w) float16, and "instruction", B texts.

    Pictures are never mirrored: an instruction may say left or right.
    """

    def __init__(self, pairs: list[Pair], moments: Tensor) -> None:
        self.pairs, self.moments = pairs, moments

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, visits: list[tuple[int, int]]) -> dict[str, Any]:
        chosen = [self.pairs[row] for _, row in visits]
        sides = {side: torch.tensor([getattr(pair, side) for pair in chosen]) for side in ("before", "after")}
        return {name: self.moments[rows] for name, rows in sides.items()} | {
            "instruction": [pair.instruction for pair in chosen]
        }


def make_pairs(data: DataConfig, backbone: Backbone, size: int, device: str = "cpu") -> EditPairs:
    """The pairs of `data.source`, their latents encoded where that has not been done; they are held in memory.

    Args:
        size: pixels per side, the centre square.
        device: where the VAE encodes.

    Raises:
        UserError: no pairs there, or an address.
    """
    if is_address(data.source):
        raise UserError(f"data.shards={data.source} given; pairs are read from a folder: copy the shards into one")
    folder = expand(data.source)
    index, key = Index.load(folder), vae_key(backbone.vae, size)
    pairs = read_pairs(folder, index)
    pictures = partial(pictures_of, folder, batch_size=BATCH, size=size)
    ensure_latents(folder, backbone.vae, backbone.moments, key, device, pictures)
    return EditPairs(pairs, load_latents(folder, key))
