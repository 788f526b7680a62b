"""What can be trained: recipes by name, and what each hands to the loop."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import DataLoader

from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError

RECIPES = {
    "clip": "escdiff.mini.recipes.clip:build",
    "vae": "escdiff.mini.recipes.vae:build",
    "unet": "escdiff.mini.recipes.unet:build",
    "oracle": "escdiff.mini.recipes.oracle:build",
    "scene_oracle": "escdiff.mini.recipes.scene_oracle:build",
    "encoder": "escdiff.training.encoder.setup:build",
    "method": "escdiff.training.method.setup:build",
    "instruct_pix2pix": "escdiff.training.editing.setup:build",
    "anydoor": "escdiff.mini.recipes.anydoor:build",
}


class Training(NamedTuple):
    """What `build(config)` of a recipe gives.

    Attributes:
        module: may also offer `export(folder)`, called at every checkpoint, and `sample_grid() -> PIL image`.
        data: a loader must read by an `EpochSampler`.
        finish: called once with the module, its weights averaged, after all steps.
        max_steps: of this run, where it is not `trainer.max_steps`.
    """

    module: L.LightningModule
    data: L.LightningDataModule | DataLoader
    finish: Callable[[Any], None]
    max_steps: int | None = None


def find_recipe(name: str) -> Callable[[TrainConfig], Training]:
    """The `build` function of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} given; expected one of {', '.join(RECIPES)}")
    module, function = RECIPES[name].split(":")
    return getattr(import_module(module), function)
