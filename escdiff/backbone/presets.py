"""A backbone by the name of its preset in `configs/backbone`, for commands without a configuration of their own."""

from pathlib import Path
from typing import Any

import torch
import yaml

from escdiff.backbone import Backbone, load_backbone, pick_device, pick_dtype
from escdiff.support.config.folder import configs_folder

GUIDANCE = 7.5  # Stable Diffusion's, where no preset says another


def load_preset(
    name: str, device: str = "auto", dtype: str = "auto", guidance: float | None = None
) -> tuple[Backbone, float]:
    """Load a backbone, with the guidance scale to paint with.

    Args:
        name: a preset such as sd15, a diffusers folder, or a hub id.
        device: as of `pick_device`. dtype: as of `pick_dtype`; auto is the preset's on a GPU, and float32 on a CPU.
        guidance: None for the preset's.

    Raises:
        UserError: the model, the device or the dtype is not there.
    """
    known, device = preset(name), pick_device(device)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else known.get("dtype", "float32")
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; on a CPU nothing changes
    backbone = load_backbone(known.get("name", name), dtype=pick_dtype(dtype), device=device)
    return backbone, known.get("guidance", GUIDANCE) if guidance is None else guidance


def preset(name: str) -> dict[str, Any]:
    """The `backbone` block of `configs/backbone/NAME.yaml`; empty for folders and hub ids."""
    path: Path = configs_folder() / "backbone" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8"))
