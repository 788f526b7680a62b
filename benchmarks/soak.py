"""Memory over a long run of a tiny model through the real loop, with metrics, average and checkpoints.

    python benchmarks/soak.py [--steps 20000]

The bar: at most 1 MB more per 1,000 steps, by a line through the resident memory after the first tenth of the steps.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import lightning as L
import numpy as np
import psutil
import torch

from escdiff.support.config.data import DataConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.training.loop import run
from escdiff.training.loop.recipe import RECIPES


class Memory(L.Callback):
    """Resident bytes every so many steps; and forgets the batches that the toy keeps for the tests."""

    def __init__(self, every: int) -> None:
        self.every, self.steps, self.bytes = every, [], []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_) -> None:
        module.seen.clear()
        if trainer.global_step % self.every == 0:
            self.steps.append(trainer.global_step)
            self.bytes.append(psutil.Process().memory_info().rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    RECIPES["toy"] = "toy_training:build"
    memory = Memory(steps // 100)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TrainerConfig(
            max_steps=steps, accelerator="cpu", devices=1, save_steps=steps // 40, val_steps=0, sample_steps=0
        )
        config = TrainConfig(
            recipe="toy", seed=3, run_dir=folder, data=DataConfig(batch_size=3), optim=OptimConfig(ema=0.9),
            trainer=trainer,
        )  # fmt: skip
        config.break_from = steps + 1  # the toy's
        run.train(config, [memory])
    late = len(memory.steps) // 10
    slope = np.polyfit(memory.steps[late:], memory.bytes[late:], 1)[0] * 1000 / 1e6
    first, last = memory.bytes[late] / 1e6, memory.bytes[-1] / 1e6
    print(
        f"{memory.steps[-1]} steps: {first:.1f} MB after a tenth, {last:.1f} at the end; {slope:+.3f} per 1,000 steps"
    )
    raise SystemExit(int(slope > 1))


if __name__ == "__main__":
    main()
