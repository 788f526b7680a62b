"""CPU time of reading photographs for training, with references drawn live.

    python benchmarks/photo_reading.py [--samples 48] [--step-seconds 0.18]

Per sample: reading from a shard, decoding, cutting the target, drawing both references at 224 pixels, the prompt. The
bar: 15 ms of a core at 512 pixels. Seconds depend on the machine, so each is also given as a multiple of decoding the
same picture with Pillow. And the workers per GPU that keep up with its steps.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data

from escdiff.data.index import Index
from escdiff.data.photos import PhotoDataModule
from escdiff.data.pictures import decode_image
from escdiff.data.shards import encode_jpeg, encode_json, encode_png, write_shard
from escdiff.data.workers import auto_workers, usable_cores, workers_needed

BAR, BATCH = 0.015, 8
META = {"caption": "a photo of a red cup on a wooden table", "category": "cup", "source": "", "licence": ""}
STEP = 0.18  # seconds of a step of 8 targets on an H100, computed in docs/training.md


def write_photos(folder: Path, size: tuple[int, int], masks: bool, objects: bool) -> bytes:
    """A shard of crops of a real photograph; returns one of its pictures."""
    whole = Image.fromarray(data.astronaut()).resize((size[0] * 5 // 4, size[1] * 5 // 4), Image.Resampling.LANCZOS)
    rng, rows = np.random.default_rng(0), []
    for i in range(64):
        x, y = (int(rng.integers(side // 4)) for side in size)
        row = {"__key__": f"{i:06d}", "jpg": encode_jpeg(whole.crop((x, y, x + size[0], y + size[1])), 92)}
        row["json"] = encode_json(META | ({"object": str(i // 4)} if objects else {}))
        if masks:
            mask = Image.new("L", size)
            ImageDraw.Draw(mask).ellipse([side // 5 for side in size] + [side * 4 // 5 for side in size], 255)
            row["mask.png"] = encode_png(mask)
        rows.append(row)
    shard = write_shard(folder / "photos-000000.tar", rows)
    Index("photos", shards=[shard], planned=1).save(folder)
    return rows[0]["jpg"]


def core_seconds(work: Callable[[], int]) -> float:
    """CPU seconds per unit of what `work` returns the count of; the least of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        count = work()
        seconds.append((time.process_time() - start) / count)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--step-seconds", type=float, default=STEP, help=f"of the accelerator, for {BATCH} targets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    slowest = 0.0
    print("| pictures | target | masks | others of the object | ms per sample | times decoding | workers per GPU |")
    print("|---|---:|---|---|---:|---:|---:|")
    for size, target, masks, objects in (
        ((512, 512), 512, False, False), ((1024, 768), 512, False, False), ((512, 512), 512, True, False),
        ((512, 512), 512, True, True), ((512, 512), 224, False, False),
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            picture = write_photos(Path(folder), size, masks, objects)
            module = PhotoDataModule(folder, batch_size=BATCH, size=target, buffer=8)
            epochs = iter(range(1000))

            def read(module=module, epochs=epochs) -> int:
                seen = 0
                while seen < args.samples:
                    module.set_epoch(next(epochs))
                    seen += sum(len(batch["key"]) for batch in module.train_dataloader())
                return seen

            def decode(picture=picture) -> int:
                for _ in range(args.samples):
                    decode_image(picture, "a")
                return args.samples

            read()
            sample, alone = core_seconds(read), core_seconds(decode)
        workers = workers_needed(sample, BATCH, args.step_seconds)
        about = f"{size[0]} x {size[1]} | {target} | {'yes' if masks else 'no'} | {'yes' if objects else 'no'}"
        print(f"| {about} | {sample * 1e3:.1f} | {sample / alone:.1f} | {workers} |")
        slowest = max(slowest, sample)
    print(f"slowest {slowest * 1e3:.1f} ms (the bar: {BAR * 1e3:.0f})")
    print(f"data.num_workers=auto gives one GPU on these {usable_cores()} cores {auto_workers(1)} workers")
    raise SystemExit(int(slowest > BAR))


if __name__ == "__main__":
    main()
