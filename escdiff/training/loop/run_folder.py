"""A run's folder: composed config, metrics, samples, checkpoints and a manifest of what ran where."""

import json
import logging
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from escdiff.support.config.keys import leaves
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic
from escdiff.training.loop import checkpoint_files as checkpoint_io

PACKAGES = ("escdiff", "torch", "lightning", "diffusers", "transformers", "peft", "open_clip_torch")
SPARE = 200e6  # bytes, for metrics and sample grids
# Keys that make another training of it; others, such as hardware and length, may change on the way.
OF_A_TRAINING = ("recipe", "seed", "init", "naming", "instances", "loss", "space", "optim", "method")
READ_ENCODER = ("encoder", "anydoor")  # recipes; to others another default of `encoder` changes nothing
log = logging.getLogger(__name__)


class RunFolder:
    """Paths in, and records of, one run.

    Layout: config.yaml, manifest.json, metrics.jsonl, checkpoints/step-*.ckpt, samples/step-*.png, and
    whatever the recipe exports.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.checkpoints, self.samples = self.path / "checkpoints", self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"

    def create(self) -> None:
        """Make the folders.

        Raises:
            UserError: that cannot be done.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {self.path}: {error.strerror}; give another run_dir"
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands out of the folder; the system lets go of it when this process ends, however that is.

        Raises:
            UserError: another process trains in it.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            fcntl = None
        if fcntl is None or rank_zero_only.rank != 0:
            yield
            return
        with open(self.path / ".lock", "w", encoding="utf-8") as file:
            try:
                # Not flock, which workers would inherit and hold on to after their parent was killed.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"another run trains in {self.path}; wait for it or give another run_dir") from None
            except OSError as error:
                log.warning("%s cannot be locked (%s); give it to one command at a time", self.path, error.strerror)
            yield

    def saved(self) -> list[Path]:
        """Checkpoints, the newest (furthest) first."""
        return checkpoint_io.saved(self.checkpoints)

    def newest_checkpoint(self) -> Path | None:
        """The furthest checkpoint that is sound, None where there is none.

        Those passed over are renamed, else they would count among the newest few that are kept.

        Raises:
            UserError: there are some and none can be read.
        """
        saved = self.saved()
        for number, path in enumerate(saved):
            if (reason := checkpoint_io.damage(path)) is None:
                if rank_zero_only.rank == 0:
                    for damaged in saved[:number]:
                        damaged.replace(damaged.with_suffix(".damaged"))
                return path
            log.warning("the checkpoint %s cannot be read (%s); trying the one before", path, reason)
        if saved:
            raise UserError(f"no checkpoint in {self.checkpoints} can be read; delete them to start anew")
        return None

    def manifest(self) -> dict[str, Any]:
        """What manifest.json says; nothing where there is none."""
        try:
            return json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def lines(self) -> list[dict[str, Any]]:
        """The logged metrics, one dict per line; none where there is no file."""
        try:
            return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            return []

    def metric(self, name: str) -> float | None:
        """Mean of a metric over the last tenth of the lines that have it."""
        values = [line[name] for line in self.lines() if line.get(name) is not None]
        last = values[-max(1, len(values) // 10) :]
        return sum(last) / len(last) if last else None

    def check_fresh(self) -> None:
        """Refuse to start anew over the checkpoints of an earlier run.

        Raises:
            UserError: there are some.
        """
        if self.saved():
            what = f"{self.checkpoints} holds checkpoints of an earlier run and resume=false was given"
            raise UserError(f"{what}; say resume=true to go on, or give another run_id")

    def check_same(self, config: TrainConfig) -> None:
        """Refuse to go on from the checkpoints of another training, whose settings would silently not count.

        Raises:
            UserError: names the first settings that differ, theirs and ours.
        """
        try:
            stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return
        theirs, ours = leaves(stored or {}), leaves(yaml.safe_load(_as_yaml(config)))
        read = OF_A_TRAINING + (("encoder",) if config.recipe in READ_ENCODER else ())
        differ = [
            f"{name}={theirs[name]} there, {ours[name]} given"
            for name in theirs
            if name.split(".")[0] in read and name in ours and theirs[name] != ours[name]
        ]
        if differ:
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            what = f"{self.path} holds checkpoints of another training ({'; '.join(differ[:3])}{more})"
            raise UserError(f"{what}; give run_id=NAME to train beside it, or its settings to go on")

    def check_space(self, module: nn.Module, keep: int) -> None:
        """Refuse a run whose checkpoints would not fit on the disk.

        Raises:
            UserError: names what is needed and what is free.
        """
        size = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in module.parameters())
        needed = (keep + 1) * size + SPARE  # the newest is written before the oldest goes
        free = shutil.disk_usage(self.path).free
        if needed > free:
            what = f"this run needs about {needed / 1e9:.1f} GB in {self.path}, {free / 1e9:.1f} GB are free"
            raise UserError(f"{what}; make room, keep fewer checkpoints or give another run_dir")

    def write_config(self, config: TrainConfig) -> None:
        """Write the composed configuration as YAML."""
        write_atomic(self.path / "config.yaml", _as_yaml(config).encode())

    def write_manifest(self, **values: Any) -> None:
        """Merge `values` into manifest.json."""
        write_atomic(self.path / "manifest.json", json.dumps({**self.manifest(), **values}, indent=1).encode())


def _as_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def environment() -> dict[str, Any]:
    """What a figure of this run depends on besides its config."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "packages": versions,
        "python": platform.python_version(), "platform": platform.platform(),
        "threads": torch.get_num_threads(), "devices": devices or ["cpu"],
    }  # fmt: skip
