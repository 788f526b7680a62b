"""Memory of reading 100,000 samples through the data module.

    python benchmarks/reading_memory.py [--samples 100000] [--workers 0]

The bar: less than 1 MB more per 10,000 samples, fitted over all but the first tenth (buffers fill up in it).
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.photos import PhotoDataModule
from escdiff.data.shards import encode_jpeg, encode_json, encode_png, write_shard

PER_SHARD = 5000


def make_shards(folder: Path, count: int) -> None:
    """Samples of 16 x 16 pixels with references, as `pairs` writes them; 500 pictures are distinct."""
    rng = np.random.default_rng(0)
    pictures = [encode_png(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(500)]
    view = encode_jpeg(Image.new("RGB", (16, 16), (200, 40, 40)))
    meta = encode_json({"caption": "", "category": "thing", "source": "", "licence": ""})
    views = {schema.SHAPE_VIEW: view, schema.APPEARANCE_VIEW: view}
    shards = []
    for s in range(-(-count // PER_SHARD)):
        numbers = range(s * PER_SHARD, min((s + 1) * PER_SHARD, count))
        rows = ({"__key__": f"{i:08d}", "png": pictures[i % 500], **views, "json": meta} for i in numbers)
        shards.append(write_shard(folder / f"photos-{s:04d}.tar", rows))
    Index("photos", shards=shards, planned=len(shards)).save(folder)


def resident(pid: int) -> float:
    """MB of a process's own (anonymous) memory: pages of files, which come and go, are left out."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1000
    return 0.0


def family() -> float:
    """MB of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return sum(resident(int(pid)) for pid in [os.getpid(), *children.read_text(encoding="utf-8").split()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("samples", 100_000), ("workers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    seen, places, sizes = 0, [], []
    try:
        make_shards(folder, args.samples)
        data = PhotoDataModule(folder, batch_size=50, size=16, num_workers=args.workers)
        for batch in data.train_dataloader():
            seen += len(batch["key"])
            if seen % 1000 == 0:
                places.append(seen)
                sizes.append(family())
    finally:
        shutil.rmtree(folder)
    late = len(places) // 10
    slope = np.polyfit(places[late:], sizes[late:], 1)[0] * 10_000
    ends = f"{sizes[late]:.1f} MB after {places[late]}, {sizes[-1]:.1f} MB at the end"
    print(f"{seen} samples, {args.workers} workers: {ends}")
    print(f"slope {slope:+.3f} MB per 10,000 samples (the bar: below 1)")
    raise SystemExit(int(slope >= 1))


if __name__ == "__main__":
    main()
