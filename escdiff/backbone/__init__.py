"""The frozen Stable Diffusion: identifying a checkpoint, loading it, and adapters over its U-Net."""

from escdiff.backbone.backbone import (
    DTYPES,
    Backbone,
    blueprint_of,
    load_backbone,
    loading_options,
    pick_device,
    pick_dtype,
)
from escdiff.backbone.identify import Blueprint, mini_folder, read_blueprint

__all__ = [
    "DTYPES",
    "Backbone",
    "Blueprint",
    "blueprint_of",
    "load_backbone",
    "loading_options",
    "mini_folder",
    "pick_device",
    "pick_dtype",
    "read_blueprint",
]
