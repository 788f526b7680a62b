"""Scenes with and without an object, and the object elsewhere: what AnyDoor learns from.

Everything but the object is equal in the two, shadows and what stands behind apart; the reference shows the same
instance alone, from another side, in another light and on another background.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from escdiff.mini.data.chunks import make_chunks, to_pixels
from escdiff.mini.world import scenes, world
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.edits import alone
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.world import Factors
from escdiff.support.files import replacing

STREAM = 880_000  # of random numbers, apart from those of other data
PER_CHUNK = 64
ALONE = 0.5  # share of scenes that are empty without the object
ROOM = (1.05, 1.25)  # sides of the box, by how much they exceed the object's


@dataclass(frozen=True)
class Placing:
    """An arrangement, which of its things is placed, and that thing elsewhere."""

    after: Arrangement
    number: int
    reference: Factors

    @property
    def before(self) -> Arrangement:
        return self.after.without(self.number)


def draw_placing(seed: int, number: int, held_out: bool = False) -> Placing:
    """Placing `number` of a seed; without `held_out` none with a thing that `world.held_out` keeps."""
    rng = np.random.default_rng((seed, STREAM, number))
    while True:
        after = alone(rng) if rng.random() < ALONE else scenes.sample_arrangement(rng)
        thing_number = int(rng.integers(len(after.things)))
        thing = after.things[thing_number]
        if held_out or not any(world.held_out(one.shape, one.material) for one in after.things):
            reference = Factors(thing.shape, thing.material, world.sample_scene(rng, thing.material))
            return Placing(after, thing_number, reference)


def show(placings: list[Placing], size: int = 128) -> dict[str, np.ndarray]:
    """Renders: "before", "after", "reference" (n, size, size, 3) uint8; "mask" of the object in the reference
    (n, size, size) bool and "box" (n, 4), its box in "after" as shares of the side."""
    with_it, without, views = (
        render(pictures, size)
        for pictures in ([p.after for p in placings], [p.before for p in placings], [p.reference for p in placings])
    )
    whole = [masks[p.number] for masks, p in zip(with_it.whole, placings, strict=True)]
    return {
        "before": without.image, "after": with_it.image, "reference": views.image, "mask": views.mask,
        "box": boxes(np.stack(whole)),
    }  # fmt: skip


def build_placings(folder: Path, count: int, seed: int, size: int = 128, workers: int = 0) -> None:
    """Render placings into `folder`, chunk by chunk; what is there already is kept.

    Args:
        count: rounded up to whole chunks.
        workers: processes; 0 renders in this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    due = [chunk for chunk in range(-(-count // PER_CHUNK)) if not _file(folder, chunk).is_file()]
    make_chunks(due, partial(_render_chunk, folder, seed, size), PER_CHUNK, "placings", workers)


def _render_chunk(folder: Path, seed: int, size: int, chunk: int) -> None:
    placings = [draw_placing(seed, number) for number in range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)]
    with replacing(_file(folder, chunk)) as file:
        np.savez(file, **show(placings, size))


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"placings-{chunk:05d}.npz"


class Placings(Dataset):
    """Batches of "before", "after", "reference" (B, 3, H, W) in [-1, 1], "mask" (B, 1, H, W) and "box", B boxes.

    A box is larger than its object by a factor drawn from `ROOM`, the same at every start of a run.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        parts = [np.load(file) for file in sorted(folder.glob("placings-*.npz"))]
        self.arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
        self.seed = seed

    def __len__(self) -> int:
        return len(self.arrays["box"])

    def __getitems__(self, visits: list[tuple[int, int]]) -> dict[str, Tensor | list]:
        rows = [row for _, row in visits]
        batch = {name: to_pixels(self.arrays[name][rows]) for name in ("before", "after", "reference")}
        batch["mask"] = torch.from_numpy(self.arrays["mask"][rows])[:, None].float()
        batch["box"] = [self._box(*visit) for visit in visits]
        return batch

    def _box(self, epoch: int, row: int) -> tuple[float, ...]:
        rng = np.random.default_rng((self.seed, epoch, row))
        return roomy(self.arrays["box"][row].tolist(), rng.uniform(*ROOM))


def roomy(box: list[float], factor: float) -> tuple[float, ...]:
    """A box enlarged about its middle, as far as the picture reaches."""
    left, top, right, bottom = box
    width, height = (right - left) * (factor - 1) / 2, (bottom - top) * (factor - 1) / 2
    grown = (left - width, top - height, right + width, bottom + height)
    return tuple(min(max(side, 0.0), 1.0) for side in grown)
