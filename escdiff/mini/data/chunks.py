"""Rendered pictures in chunks of one array each, with a JSON of what they show: what the judges are trained on."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from escdiff.mini.world.rendering.render import Rendered, render
from escdiff.support.files import replacing, write_json
from escdiff.support.progress import sample_progress

Draw = Callable[[int], Sequence]  # number of a chunk -> what its pictures show, with `to_dict`
Describe = Callable[[Sequence, Rendered], list[dict]]  # those and their renders -> plain values, one per picture


def to_pixels(data: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(data).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_bytes(pixels: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def plain(pictures: Sequence, _: Rendered) -> list[dict]:
    """Descriptions of the pictures, as plain values."""
    return [picture.to_dict() for picture in pictures]


def build_chunks(
    folder: Path, count: int, per_chunk: int, draw: Draw, size: int = 128, workers: int = 0, describe: Describe = plain
) -> None:
    """Render `count` chunks of `per_chunk` pictures into `folder`; what is there already is kept.

    Args:
        draw, describe: functions of a module where there are workers.
        size: pixels a side.
        workers: processes; 0 renders in this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    due = [chunk for chunk in range(count) if not _labels(folder, chunk).is_file()]
    make_chunks(due, partial(_render_chunk, folder, draw, describe, size), per_chunk, folder.name, workers)


def make_chunks(due: Sequence[int], make: Callable[[int], None], per_chunk: int, label: str, workers: int = 0) -> None:
    """Call `make(number)` for every chunk that is due, below a progress bar.

    Args:
        workers: processes; 0 works in this one.
    """
    pool = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) if workers else nullcontext()
    with sample_progress(label, len(due) * per_chunk) as advance, pool as running:
        for _ in running.map(make, due) if running else map(make, due):
            advance(per_chunk)


def soften(folder: Path, through: Callable[[Tensor], Tensor], every: int = 4, batch_size: int = 32) -> None:
    """Send each `every`-th chunk through the VAE, so that the judge learns its softness; done chunks are kept.

    Args:
        through: pixels (B, 3, H, W) in [-1, 1] -> the same, reconstructed.
    """
    files = [file for file in sorted(folder.glob("chunk-*.npy"))[::every] if not _soft(file).is_file()]
    counts = [len(np.load(file, mmap_mode="r")) for file in files]
    with sample_progress("through the VAE", sum(counts)) as advance:
        for file in files:
            pixels = np.load(file)
            for first in range(0, len(pixels), batch_size):
                part = slice(first, first + batch_size)
                pixels[part] = to_bytes(through(to_pixels(pixels[part])))
                advance(len(pixels[part]))
            with replacing(_soft(file)) as out:
                np.save(out, pixels)


class Chunked(Dataset):
    """Batches of groups of pictures that lie behind each other: pixels (B * `group`, 3, H, W) in [-1, 1] and labels.

    Attributes:
        labels: name -> (N, ...) of every picture; a subclass sets it.
    """

    labels: dict[str, Tensor]

    def __init__(self, folder: Path, group: int, per_chunk: int) -> None:
        self.group, self.per_chunk = group, per_chunk
        self.files = sorted(folder.glob("chunk-*.json"))
        arrays = [file.with_suffix(".npy") for file in self.files]
        self.pixels = [np.load(_soft(f) if _soft(f).is_file() else f, mmap_mode="r") for f in arrays]

    def described(self) -> list[dict]:
        """`Describe`'s record of each picture."""
        return [record for file in self.files for record in json.loads(file.read_text(encoding="utf-8"))]

    def __len__(self) -> int:
        return len(self.files) * self.per_chunk // self.group

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        firsts = [row * self.group for _, row in visits]
        return self.pictures(np.concatenate([np.arange(first, first + self.group) for first in firsts]))

    def pictures(self, rows: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """The pictures of these rows with their labels."""
        pixels = np.stack([self.pixels[row // self.per_chunk][row % self.per_chunk] for row in rows])
        return to_pixels(pixels), {name: values[rows] for name, values in self.labels.items()}


def _render_chunk(folder: Path, draw: Draw, describe: Describe, size: int, chunk: int) -> None:
    pictures = draw(chunk)
    rendered = render(pictures, size)
    with replacing(folder / f"chunk-{chunk:05d}.npy") as file:
        np.save(file, rendered.image)
    write_json(_labels(folder, chunk), describe(pictures, rendered))  # last: it says that the chunk is whole


def _labels(folder: Path, chunk: int) -> Path:
    return folder / f"chunk-{chunk:05d}.json"


def _soft(file: Path) -> Path:
    return file.with_name(file.name.replace("chunk", "soft"))
