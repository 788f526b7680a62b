"""The encoder's training step against a bare forward and backward pass of the frozen U-Net at the same batch.

    python benchmarks/encoder_step.py [--batch 64] [--draws 4] [--cells 2] [--threads 2] [--rounds 10]

The bar: at most 1.25. `--batch` counts noised latents, so batch / draws references are encoded per step. The step has
the losses and the vocabulary of `experiment=mini/encoder`, but no average of the weights and no guard of gradients;
`step_tokens` has the vision tower's tokens out of a cache (`data.tokens=auto`).
"""

import argparse
import resource
from dataclasses import replace
from types import SimpleNamespace

import torch
from common import bundled, side_by_side

from escdiff.concept import ATTRIBUTES
from escdiff.encoder.packing import Packing
from escdiff.support.config.compose import compose
from escdiff.support.config.loss import LossConfig
from escdiff.training.encoder.module import EncoderModule
from escdiff.training.encoder.setup import make_encoder

PICTURES = ("shape_ref", "appearance_ref", "pixels")
PAIR = 2  # steps measured together: every other one has the target's picture too


def make_module(backbone, draws: int, cells: int) -> EncoderModule:
    config = compose("train", ["experiment=mini/encoder"])
    encoder, loss = make_encoder(config.encoder, config.space, backbone), replace(config.loss, draws=draws, cells=cells)
    module = EncoderModule(encoder, backbone, loss, lr=1e-4, max_steps=100, warmup=1)
    module.trainer = SimpleNamespace(global_step=0, log_every_n_steps=10**9)
    return module


def make_batch(count: int) -> dict:
    pictures = {name: torch.rand(count, 3, 128, 128) * 2 - 1 for name in PICTURES}
    masks = {name: torch.ones(count, 1, 128, 128) for name in ("mask", "shape_mask", "appearance_mask")}
    texts = ["a photo of a <appearance> <shape> on a navy background"] * count
    words = {"shape_words": ["mug"] * count, "appearance_words": ["glossy red and white striped"] * count}
    return {**pictures, **masks, **words, "latent": torch.randn(count, 16, 16, 16), "prompt": texts}


def stored(batch: dict, packing: Packing) -> dict:
    """The same batch with tokens, as `data.tokens=auto` gives them, in place of the pictures."""
    count = len(batch["prompt"])
    tokens = {f"{name}_tokens": torch.randn(count, packing.values).half() for name in ("target", *ATTRIBUTES)}
    return {name: value for name, value in batch.items() if name not in PICTURES} | tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipe = {"draws": LossConfig.draws, "cells": LossConfig.cells}
    for name, default in {"batch": 64, **recipe, "threads": 2, "rounds": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = bundled()
    module = make_module(backbone, args.draws, args.cells)
    module.on_fit_start()
    optimizer = module.configure_optimizers()["optimizer"]
    batch = make_batch(args.batch // args.draws)
    noisy, timesteps = torch.randn(args.batch, 8, 16, 16), torch.randint(0, 1000, (args.batch,))
    plain = torch.randn(args.batch, 77, backbone.width, requires_grad=True)

    def bare() -> None:
        for _ in range(PAIR):
            backbone.predict(noisy, timesteps, plain).square().mean().backward()
            plain.grad = None

    def encoder_steps(first: int, batch: dict = batch) -> None:
        for step in range(first, first + PAIR):
            module.trainer.global_step = step
            module.training_step(batch, 0)["loss"].backward()
            module.on_after_backward()
            optimizer.step()
            optimizer.zero_grad()

    def vision() -> None:
        with torch.no_grad():
            for _ in range(PAIR):
                module.encoder.tokens(torch.cat([batch["shape_ref"], batch["appearance_ref"]]))

    # Of 100 steps the words' part ends at 25, and from 90 on all cells differ.
    tokens = stored(batch, module.packing)
    runs = {
        "bare": bare, "step": lambda: encoder_steps(50), "step_tokens": lambda: encoder_steps(50, tokens),
        "step_all_cells": lambda: encoder_steps(98),
    }  # fmt: skip
    times = side_by_side(args.rounds, **runs, vision=vision)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    references = args.batch // args.draws
    print(f"batch {args.batch} = {references} references x {args.draws} draws, {args.cells} cells, "
          f"{args.threads} threads")  # fmt: skip
    for name, seconds in times.items():
        print(f"{name:15s} {1000 * seconds / PAIR:8.0f} ms   {seconds / times['bare']:.2f} x bare")
    print(f"{PAIR * args.batch / times['step']:.1f} samples/s, peak memory {memory:.2f} GB")


if __name__ == "__main__":
    main()
