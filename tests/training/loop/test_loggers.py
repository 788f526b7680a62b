"""The local file is the truth; mirrors may fail; data is rendered where there is none."""

import json
import logging
import threading

import pytest
from lightning.pytorch.loggers import Logger
from PIL import Image

from escdiff.support.config.compose import compose
from escdiff.support.config.trainer import LoggerConfig
from escdiff.support.errors import UserError
from escdiff.training.loop.monitoring import loggers
from escdiff.training.loop.monitoring.loggers import JsonlLogger, Mirror, make_loggers


def test_jsonl_lines_and_rewind(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    for step in range(5):
        logger.log_metrics({"loss": float("nan") if step == 1 else step}, step)
    with open(logger.path, "a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    logger.rewind(3)
    lines = [json.loads(line) for line in logger.path.read_text(encoding="utf-8").splitlines()]
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
        self.asked, self.answer, self.answered = threading.Event(), threading.Event(), False

    def log_metrics(self, metrics, step=None):
        self.asked.set()
        self.answer.wait(60)
        self.answered = True


def test_a_hanging_mirror_costs_nothing(caplog, monkeypatch):
    monkeypatch.setattr(loggers, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(loggers, "QUEUE", 5)
    # Of 5 messages and the last word the thread takes one, the others fill the queue: the end finds no place in it.
    for count, words in ((3, "no answer"), (5, "no answer"), (20, "does not keep up")):
        inner = Hanging()
        mirror = Mirror("hanging", lambda inner=inner: inner)
        for step in range(count):
            mirror.log_metrics({"loss": 1.0}, step)
            assert inner.asked.wait(10)
        mirror.finalize("success")
        assert words in caplog.text and not inner.answered  # the end did not wait for it
        inner.answer.set()


def test_logger_names(tmp_path):
    assert len(make_loggers(LoggerConfig(), tmp_path, "run", {})) == 1
    assert len(make_loggers(LoggerConfig("tensorboard"), tmp_path, "run", {})) == 2
    with pytest.raises(UserError, match="expected none, jsonl, tensorboard or wandb"):
        compose("train", ["logger.name=slate"])


def test_pictures_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, mirror = make_loggers(LoggerConfig("tensorboard"), tmp_path, "run", {})
    mirror.log_picture("samples", Image.new("RGB", (8, 8), "red"), 3)
    mirror.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert mirror.works and [event.step for event in events.Images("samples")] == [3]
