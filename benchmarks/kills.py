"""kill -9 at random points of the encoder's training, each time resumed: is what follows bit for bit the same run?

    python benchmarks/kills.py [--kills 50] [--in-saves 20] [--temporary /dev/shm] [--toy]

A tiny model, trained once in one go with every checkpoint kept, then again, keeping two, with kills, `--in-saves` of
them at a step of a save: before or after its renaming, before or after the manifest's. The temporary folder is on
another file system where `--temporary` is. After every kill the newest sound checkpoint must equal the undisturbed
run's of that step: weights, optimizer, schedule, average, random state, data position. At the end so must the metrics,
line by line, but for the clock. Ends with status 1 if not.
`--toy` trains two layers instead, through the same loop, in a tenth of the time.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.data import DataConfig
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.support.logging import quiet_libraries
from escdiff.training.loop import checkpoint_files as checkpoint_io
from escdiff.training.loop import run
from escdiff.training.loop.recipe import RECIPES

CLOCKS = ("time", "throughput")
PAUSE = 0.02  # seconds before each flush of a save that a kill is to meet
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")


def make_config(folder: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        recipe="encoder", seed=5, run_dir=str(folder / "straight"),
        backbone=BackboneConfig(name=str(folder / "backbone")),
        encoder=EncoderConfig(vision=str(folder / "tower"), features=64, branch_rank=2),
        data=DataConfig(root=str(folder / "world"), batch_size=4, val_fraction=0.0),
        optim=OptimConfig(lr=1e-3, warmup=2, ema=0.9), loss=LossConfig(draws=2, cells=4),
        trainer=TrainerConfig(
            max_steps=steps, accelerator="cpu", devices=1, log_steps=2, save_steps=1, keep=steps, val_steps=0,
            sample_steps=0,
        ),
    )  # fmt: skip


def prepare(folder: Path) -> None:
    make_still_life(folder / "world", 96, StillLifeOptions(seed=1))
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
                             image_size=64, patch_size=16)  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    tiny.make_backbone().pipeline().save_pretrained(folder / "backbone")


def fork(config: TrainConfig, pipe: int | None = None, slowly: bool = False) -> int:
    """Train in a child process; it writes a byte to `told` when a save begins, or `slowly` before its every flush.

    Returns the child's id.
    """
    if child := os.fork():
        return child
    status = 1
    try:
        os.dup2(os.open(f"{config.run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        if slowly:
            fsync = os.fsync

            def announced_flush(handle):
                if threading.current_thread() is not threading.main_thread():  # saves have a thread of their own
                    os.write(pipe, b".")
                    time.sleep(PAUSE)
                fsync(handle)

            os.fsync = announced_flush
        elif pipe is not None:
            write = checkpoint_io.write_verified

            def announced(path, state):
                os.write(pipe, b".")
                write(path, state)

            checkpoint_io.write_verified = announced
        run.train(config)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def saved(folder: str) -> dict[int, Path]:
    return {int(p.stem.split("-")[1]): p for p in checkpoint_io.saved(Path(folder) / "checkpoints")}


def difference(a, b, path: str = "") -> str | None:
    """The first place where two nested values differ."""
    if isinstance(a, torch.Tensor):
        return None if torch.equal(a, b) else path
    if isinstance(a, dict):
        a, b = ({str(k): v for k, v in x.items()} for x in (a, b))
        pairs = [(a[k], b.get(k), f"{path}/{k}") for k in a] if a.keys() == b.keys() else [(1, 0, path)]
    elif isinstance(a, list | tuple):
        pairs = [(x, y, f"{path}/{i}") for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else path
    return next((inner for x, y, place in pairs if (inner := difference(x, y, place))), None)


def metrics(folder: str) -> list[dict]:
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines]


def load(path: Path) -> dict:
    state = torch.load(path, weights_only=True)
    return {name: state[name] for name in (*PARTS, *(n for n in state if n.endswith("Data")))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 50), ("in-saves", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--temporary", default="/dev/shm", help="folder on another file system")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--keep", help="folder to work in, else one that is deleted")
    args = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TMPDIR"], tempfile.tempdir = args.temporary, None  # read anew
        folder = Path(args.keep or temporary).absolute()
        steps = 3 * args.kills + 20
        if not args.toy:
            prepare(folder)
        config = make_config(folder, steps)
        if args.toy:
            RECIPES["toy"] = "toy_training:build"
            config.recipe, config.break_from = "toy", steps + 1
        start = time.monotonic()
        assert os.waitpid(fork(config), 0)[1] == 0, "the undisturbed run failed"
        rng, straight = random.Random(args.seed), saved(config.run_dir)
        in_save = [True] * args.in_saves + [False] * (args.kills - args.in_saves)
        rng.shuffle(in_save)
        config.run_dir, config.trainer.keep, good, halves = str(folder / "killed"), 2, 0, 0
        pace = (time.monotonic() - start) / steps
        for number, in_a_save in enumerate(in_save, 1):
            hears, tells = os.pipe()
            child = fork(config, tells, in_a_save)
            os.close(tells)
            for _ in range(rng.randint(1, 12 if in_a_save else 4)):
                os.read(hears, 1)
            time.sleep(rng.uniform(0, PAUSE if in_a_save else pace))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it ended before the kill"
            os.close(hears)
            halves += bool(list((Path(config.run_dir) / "checkpoints").glob(".step-*.tmp")))
            newest = run.RunFolder(config.run_dir).newest_checkpoint()
            step = 0 if newest is None else int(newest.stem.split("-")[1])
            changed = None if newest is None else difference(load(straight[step]), load(newest))
            good += changed is None
            print(f"kill {number:3d} at step {step:4d}: {changed or 'same'}", flush=True)
        assert os.waitpid(fork(config), 0)[1] == 0, "the last sitting failed"
        again = saved(config.run_dir)
        whole = steps in again and all(
            difference(load(straight[step]), load(path)) is None for step, path in again.items()
        )
        lines = metrics(config.run_dir) == metrics(str(folder / "straight"))
    verdicts = ["equal" if same else "DIFFERENT" for same in (whole, lines)]
    print(f"{good} of {args.kills} kills resumed bit for bit, {args.in_saves} of them in a save ({halves} left half a "
          f"checkpoint); the last checkpoints {verdicts[0]}, metrics {verdicts[1]}")  # fmt: skip
    raise SystemExit(0 if good == args.kills and whole and lines else 1)


if __name__ == "__main__":
    main()
