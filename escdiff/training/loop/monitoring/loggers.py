"""Loggers: a local JSONL file is the truth; wandb and TensorBoard are mirrors that may fail without harm."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from escdiff.support.config.trainer import LoggerConfig
from escdiff.support.errors import reason_of
from escdiff.support.files import write_atomic

QUEUE, GRACE_SECONDS = 1000, 20.0
log = logging.getLogger(__name__)


class JsonlLogger(Logger):
    """One JSON object per logged step: step (counted from 0), seconds since the epoch, and every metric.

    Values that are not finite become null, since JSON has no word for them.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path, self._waiting = Path(path), b""

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the whole config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {k: v if math.isfinite(v) else None for k, v in ((k, float(v)) for k, v in metrics.items())}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        self._waiting += (line + "\n").encode()
        try:
            self._append()
        except OSError as error:  # a full disk; the lines wait for room
            log.warning("the metrics of step %s could not be written: %s", step, error)

    def _append(self) -> None:
        with open(self.path, "ab", buffering=0) as file:  # opened anew each time, so a killed run loses nothing
            before = file.tell()
            try:
                if file.write(self._waiting) < len(self._waiting):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())  # before the checkpoint of this step
            except OSError:
                os.truncate(self.path, before)  # no half lines
                raise
        self._waiting = b""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what was logged at `step` or later: those steps were lost and will be trained again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and _step(line) < step]
        if len(kept) < len(lines):
            write_atomic(self.path, "".join(kept).encode())


def _step(line: str) -> float:
    try:
        return json.loads(line).get("step") or 0
    except ValueError:  # half a line, of a run that was killed
        return math.inf


class Mirror(Logger):
    """Passes everything on to another logger, in a thread of its own, which even makes that logger.

    So one that hangs costs the training nothing: what does not fit into the queue is dropped, and at the end it is
    waited for `GRACE_SECONDS` only. One that fails goes silent.
    """

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self._name, self._make, self.works = name, make, True
        self._queue: queue.Queue[tuple[str, tuple, dict] | None] = queue.Queue(QUEUE)
        self._thread: threading.Thread | None = None

    def _run(self) -> None:
        try:
            inner = self._make()
            while (message := self._queue.get()) is not None:
                method, args, kwargs = message
                getattr(inner, method)(*args, **kwargs)
        except Exception as error:  # not installed, no key, no network: none of it is worth a training
            self._silence(reason_of(error))

    def _silence(self, reason: str) -> None:
        if self.works:
            self.works = False
            log.warning("%s failed (%s); metrics go on into the local file only", self._name, reason)

    @rank_zero_only
    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        if not self.works:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((method, args, kwargs))
        except queue.Full:
            self._silence("it does not keep up")

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self._pass_on("log_hyperparams", *args, **kwargs)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._pass_on("log_metrics", metrics, step)

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        self._pass_on("log_picture", name, picture, step)

    def finalize(self, status: str) -> None:
        self._pass_on("finalize", status)
        if self._thread is None or not self.works:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=GRACE_SECONDS)
        self._thread.join(GRACE_SECONDS)
        if self._thread.is_alive():
            self._silence(f"no answer for {GRACE_SECONDS:.0f} s")


def make_loggers(settings: LoggerConfig, folder: Path, name: str, config: Mapping[str, Any]) -> list[Logger]:
    """The JSONL logger and, by `logger.name` (none, tensorboard or wandb), a mirror.

    Args:
        name: of the run. config: all of its configuration, which wandb shows.
    """
    loggers: list[Logger] = [JsonlLogger(folder / "metrics.jsonl")]
    makers = {"tensorboard": partial(_tensorboard, folder), "wandb": partial(_wandb, settings, folder, name, config)}
    return [*loggers, Mirror(settings.name, makers[settings.name])] if settings.name in makers else loggers


def _tensorboard(folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    class WithPictures(TensorBoardLogger):
        def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
            self.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")

    return WithPictures(str(folder), name="", version="tensorboard")


def _wandb(settings: LoggerConfig, folder: Path, name: str, config: Mapping[str, Any]) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    class OneRun(WandbLogger):
        def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
            self.log_image(name, [picture], step=step)

        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.finish()  # else the next cell of a sweep would go on with this run

    own = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]  # the same whenever this folder goes on
    # Without its own limits wandb's exit waits for the network for ever.
    limits = wandb.Settings(init_timeout=GRACE_SECONDS, finish_timeout=GRACE_SECONDS, login_timeout=GRACE_SECONDS)
    return OneRun(
        project=settings.project, id=own, name=name, save_dir=str(folder), mode=settings.mode, config=dict(config),
        settings=limits,
    )  # fmt: skip
