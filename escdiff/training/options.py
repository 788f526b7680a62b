"""Reading a run's configuration by attribute, whatever class the door made it of.

`escdiff.cli` owns the schema and stands on a higher floor, so trainings never import it.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


def option(config: Any, name: str, default: Any = None) -> Any:
    """The value at a dotted `name`, or `default` where a part of it is missing or None."""
    value = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
        if value is None:
            return default
    return value


def export_folder(config: Any) -> Path:
    """Where the result of a training goes."""
    return Path(option(config, "export") or Path(config.run_dir) / "export").expanduser()


def own_device(config: Any) -> str:
    """Where this process computes before Lightning has moved anything."""
    if not torch.cuda.is_available() or option(config, "trainer.accelerator", "auto") not in ("auto", "gpu", "cuda"):
        return "cpu"
    rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    chosen = to_plain(option(config, "trainer.devices"))
    if isinstance(chosen, str) and "," in chosen:
        chosen = chosen.strip("[], ").split(",")
    return f"cuda:{int(chosen[rank]) if isinstance(chosen, list) else rank}"


def to_plain(config: Any) -> Any:
    """Dicts, lists and plain values of a configuration, for writing it down."""
    if is_dataclass(config) and not isinstance(config, type):
        config = asdict(config)
    if isinstance(config, SimpleNamespace):
        config = vars(config)
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)) or type(config).__name__ == "ListConfig":
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config
