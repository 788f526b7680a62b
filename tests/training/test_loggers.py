"""The local file is the truth; mirrors may fail; data is rendered where there is none."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import Logger

from escdiff.data.index import Index
from escdiff.errors import UserError
from escdiff.training import loggers
from escdiff.training.feeding import ensure_data
from escdiff.training.loggers import JsonlLogger, Mirror, make_loggers
from escdiff.training.options import option, to_plain


def test_jsonl_lines_and_rewind(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for step in range(5):
        logger.log_metrics({"loss": float("nan") if step == 1 else step}, step)
    with open(logger.path, "a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    logger.rewind(3)
    lines = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(0, 0.0), (1, None), (2, 2.0)]
    assert all(line["time"] > 0 for line in lines)


class Unplugged(Logger):
    calls = 0
    name, version = "unplugged", ""

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.calls += 1
        raise ConnectionError("no network")


def test_a_failing_mirror_goes_silent(caplog):
    inner = Unplugged()
    mirror = Mirror("unplugged", lambda: inner)
    with caplog.at_level(logging.WARNING):
        mirror.log_metrics({"loss": 1.0}, 0)
        mirror.log_metrics({"loss": 1.0}, 1)
        mirror.finalize("success")
    assert inner.calls == 1 and "no network" in caplog.text


class Hanging(Unplugged):
    def __init__(self):
        super().__init__()
        self.asked = threading.Event()

    def log_metrics(self, metrics, step=None):
        self.asked.set()
        time.sleep(60)


def test_a_hanging_mirror_costs_nothing(caplog, monkeypatch):
    monkeypatch.setattr(loggers, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(loggers, "QUEUE", 5)
    start = time.monotonic()
    # Of 5 messages and the last word the thread takes one, the others fill the queue: the end finds no place in it.
    for count, words in ((3, "no answer"), (5, "no answer"), (20, "does not keep up")):
        inner = Hanging()
        mirror = Mirror("hanging", lambda inner=inner: inner)
        for step in range(count):
            mirror.log_metrics({"loss": 1.0}, step)
            assert inner.asked.wait(10)
        mirror.finalize("success")
        assert words in caplog.text
    assert time.monotonic() - start < 10


def test_logger_names(tmp_path):
    assert len(make_loggers(SimpleNamespace(), tmp_path)) == 1
    assert len(make_loggers(SimpleNamespace(logger=SimpleNamespace(name="tensorboard")), tmp_path)) == 2
    with pytest.raises(UserError, match="expected none, tensorboard or wandb"):
        make_loggers(SimpleNamespace(logger=SimpleNamespace(name="slate")), tmp_path)


def test_options():
    config = SimpleNamespace(a={"b": SimpleNamespace(c=0)}, d=None, e=(1, 2))
    assert option(config, "a.b.c", 5) == 0
    assert option(config, "a.x.c", 5) == option(config, "d", 5) == 5
    assert to_plain(config) == {"a": {"b": {"c": 0}}, "d": None, "e": [1, 2]}


def test_data_is_rendered_once_and_completed(tmp_path):
    root = tmp_path / "world"
    config = SimpleNamespace(data=SimpleNamespace(root=str(root), num_samples=32, size=64, shard_size=16))
    ensure_data(config)
    index = Index.load(root)
    assert index.samples == 32
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("*.tar")}
    ensure_data(config)
    assert stamps == {path: path.stat().st_mtime_ns for path in root.glob("*.tar")}
    index.shards.pop()  # a run that was killed while rendering
    index.save(root)
    ensure_data(config)
    assert Index.load(root).samples == 32
