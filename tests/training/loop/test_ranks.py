"""Two processes over gloo: the same order as one, skipped together, ended together."""

import json
import os
import signal
import time
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import ranks
import torch
import toy_training
from toy_training import StopAt

from escdiff.training.loop import checkpoint_files as checkpoint_io
from escdiff.training.loop import run
from escdiff.training.loop.monitoring import watchdog as watch


class Keep(L.Callback):
    """Writes down what this rank was trained on and what it has learned."""

    def __init__(self, folder, rank):
        self.path = folder / f"seen{rank}.pt"

    def on_train_end(self, trainer, module):
        torch.save((module.seen, module.net.state_dict()), self.path)


def keep(folder, rank):
    return [Keep(folder, rank)]


def keep_broken(folder, rank):
    toy_training.Toy.breaks = lambda self: self.global_rank == 1 and self.global_step in (2, 3)
    return keep(folder, rank)


@pytest.mark.slow
def test_one_process_goes_on_as_two_with_workers(config, tmp_path):
    """At the same global batch the order of all samples is that of one process in one go."""
    config.data.batch_size = 4
    run.train(config)
    whole = toy_training.FINISHED.pop().seen
    config.run_dir = str(tmp_path / "parts")
    run.train(config, [StopAt(3)])
    config.data.batch_size, config.data.num_workers = 2, 2
    codes = ranks.wait(ranks.start(config, 2, tmp_path, partial(keep, tmp_path)), 240)
    assert codes == [0, 0], (tmp_path / "rank0.txt").read_text(encoding="utf-8")
    seen = [torch.load(tmp_path / f"seen{rank}.pt")[0] for rank in range(2)]
    again = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    assert torch.equal(torch.stack(whole[3:]), torch.stack(again))


@pytest.mark.slow
def test_a_broken_loss_on_one_rank_is_skipped_on_all(config, tmp_path):
    codes = ranks.wait(ranks.start(config, 2, tmp_path, partial(keep_broken, tmp_path)), 240)
    assert codes == [0, 0], (tmp_path / "rank0.txt").read_text(encoding="utf-8")
    (_, first), (_, second) = (torch.load(tmp_path / f"seen{rank}.pt") for rank in range(2))
    for name, value in first.items():
        assert torch.isfinite(value).all() and torch.equal(value, second[name])
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert lines[0]["ranks"][0]["loss"] > 0 and lines[0]["ranks"][1]["loss"] is None
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert all(line["train/loss_mean"] > 0 for line in metrics)


class Trouble(L.Callback):
    def __init__(self, kind):
        self.kind = kind

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3:
            if self.kind == "raises":
                raise ValueError("out of cheese")
            if self.kind == "sleeps":
                time.sleep(600)
            os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[self.kind])


def troubled(kind, rank, own):
    watch.BEAT, watch.SILENCE = 0.5, 8.0
    return [Trouble(kind)] if own == rank else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rank", "words"),
    [
        ("killed", 1, "rank 1 died or hangs"),
        ("killed", 0, "rank 0 died or hangs"),
        ("stopped", 1, "rank 1 died or hangs"),
        ("sleeps", 1, "least far: rank 1 (in forward pass)"),
        ("raises", 1, "failed: ValueError: out of cheese"),
    ],
)
def test_one_rank_ends_the_others_naming_it(config, tmp_path, kind, rank, words):
    config.trainer.max_steps, config.trainer.stall_seconds = 50, 15
    processes = ranks.start(config, 2, tmp_path, partial(troubled, kind, rank))
    other = 1 - rank
    try:
        code = ranks.wait([processes[other]], 120)[0]
    finally:
        ranks.kill(processes)
    assert code == 1
    assert words in (tmp_path / f"rank{other}.txt").read_text(encoding="utf-8")
    assert not any(map(checkpoint_io.damage, checkpoint_io.saved(tmp_path / "run" / "checkpoints")))


def test_compiling_is_waited_for():
    strategy = SimpleNamespace(
        cluster_environment=SimpleNamespace(main_address="localhost"), broadcast=lambda value: value,
        reduce_boolean_decision=lambda decision, all: decision,
    )  # fmt: skip
    rank = watch.RankWatch(60.0)
    rank.on_train_start(SimpleNamespace(world_size=2, global_rank=0, strategy=strategy), None)
    try:
        rank.steps, limit = 5, 60.0 * 0.6
        rank.on_train_batch_start()
        assert rank._limit({0: ["1", "5", rank.phase]}) == limit
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
        assert rank.phase == "compiling 1" and rank.marks == 1
        assert rank._limit({0: ["1", "5", rank.phase]}) == 10 * limit
        rank.on_before_backward()
        assert rank._limit({0: ["3", "5", rank.phase]}) == limit
    finally:
        rank.on_train_end()
    torch.compile(lambda x: x + 2, backend="eager")(torch.ones(1))
    assert rank.phase == "backward pass"
