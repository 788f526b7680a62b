"""Pictures per second and core of ingest, segment (a tiny model) and latents, and reading against training.

    python benchmarks/preparation.py [--pictures 200] [--size 128]

The bar: reading at least 10 times faster than the bundled model's encoder trains, measured here too. One
process, one thread; CPU seconds, so that other programs matter little.
"""

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.latents import Latents, latents
from data_prep.plans import make_plan
from data_prep.segment import Segment, segment
from escdiff.data.photos import PhotoDataModule
from escdiff.support.jobs.engine import Engine

HERE = Run(Engine(workers=1), max_bad=1.0, seconds=0)


def make_pictures(folder: Path, count: int) -> None:
    """JPEGs of 768 x 512 smooth colours with a little noise, as photographs have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).resize(
            (768, 512), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-8, 9, (512, 768, 1), np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def make_segmenter(folder: Path) -> str:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of a quiet run."""
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return time.process_time() - start


def read(folder: Path, size: int, count: int) -> float:
    data = PhotoDataModule(folder, batch_size=16, size=size, buffer=50)
    start, seen = time.process_time(), 0
    for batch in data.train_dataloader():
        seen += len(batch["key"])
        if seen >= count:
            break
    return seen / (time.process_time() - start)


def step_rate() -> float:
    """References per second of the encoder's training step on the bundled model."""
    sys.path.insert(0, str(Path(__file__).parent))
    from common import bundled
    from encoder_step import make_batch, make_module

    module, batch = make_module(bundled(), 4, 4), make_batch(4)
    module.on_fit_start()
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        module.trainer.global_step = 50
        module.training_step(batch, 0)["loss"].backward()
        module.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    start = time.process_time()
    for _ in range(3):
        step()
    return 3 * 4 / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 200), ("size", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    try:
        (root / "in").mkdir()
        make_pictures(root / "in", args.pictures)
        rates = {}
        for name, side in (("ingest, bytes kept", 1024), ("ingest, scaled and written anew", args.size)):
            out = root / f"set-{side}"
            rates[name] = args.pictures / timed(
                lambda o=out, s=side: ingest(make_plan(root / "in", 50), o, Ingest(max_side=s), HERE)
            )
        model = make_segmenter(root / "model")
        lax = Segment("model", model, 0, 1, 0, 1)
        segment(root / f"set-{args.size}", root / "warm", lax, HERE)
        rates["segment"] = args.pictures / timed(lambda: segment(root / "set-1024", root / "masked", lax, HERE))
        options = Latents("mini", args.size)
        rates["latents"] = args.pictures / timed(lambda: latents(root / f"set-{args.size}", options, HERE))
        rates["read 768x512 pictures"] = read(root / "set-1024", args.size, args.pictures)
        rates[f"read pictures of {args.size}"] = read(root / f"set-{args.size}", args.size, args.pictures)
        steps = step_rate()
    finally:
        shutil.rmtree(root)
    for name, rate in rates.items():
        print(f"{name:32s} {rate:8.1f} pictures/s")
    print(f"{'encoder step':32s} {steps:8.1f} references/s")
    print(f"reading is {rates[f'read pictures of {args.size}'] / steps:.1f} times as fast as training")


if __name__ == "__main__":
    main()
