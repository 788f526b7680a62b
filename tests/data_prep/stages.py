"""All commands of data_prep on one small dataset, for tests that ask the same of each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.caption import Caption, caption
from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.inspect import inspect
from data_prep.latents import Latents, latents
from data_prep.pairs import Pairs, pairs
from data_prep.plans import make_plan
from data_prep.segment import Segment, segment
from data_prep.verify import verify

COMMANDS = ("ingest", "dedup", "segment", "caption", "pairs", "latents", "inspect", "verify")
IN_PLACE = ("latents", "inspect", "verify")  # write beside the shards that they read


def make_pictures(folder: Path) -> None:
    """48 pictures with masks, one of every six damaged."""
    mask = np.zeros((120, 160), np.uint8)
    mask[30:90, 40:120] = 255
    for i in range(48):
        data = encoded(noise(160, 120, seed=i), "PNG")
        (folder / f"{i:02d}.png").write_bytes(data[: len(data) // 2] if i % 6 == 3 else data)
        (folder / f"{i:02d}.mask.png").write_bytes(encoded(Image.fromarray(mask), "PNG"))


def begin(name: str, photos: Path, folder: Path) -> Path:
    """The folder a command is to work on: new, or with the dataset in it."""
    if name in IN_PLACE:
        shutil.copytree(photos, folder)
    return folder


def command(name: str, pictures: Path, photos: Path, backbone: Path, run: Run) -> Callable[[Path], object]:
    """The command as a function of its folder, see `begin`."""
    if name == "dedup":
        pytest.importorskip("imagehash")
        from data_prep.dedup import Dedup, dedup

        return lambda out: dedup(photos, out, Dedup(), run)
    return {
        "ingest": lambda out: ingest(make_plan(pictures, 6), out, Ingest(), run),
        "segment": lambda out: segment(photos, out, Segment(), run),
        "caption": lambda out: caption(photos, out, Caption(), run),
        "pairs": lambda out: pairs(photos, out, Pairs(size=48, tries=3), run),
        "latents": lambda out: latents(out, Latents(str(backbone), 64, batch=2), run),
        "inspect": lambda out: inspect(out, run),
        "verify": lambda out: verify(out, run),
    }[name]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
