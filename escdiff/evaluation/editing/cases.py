"""A picture before and after an exact edit, and the inputs of an editor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from escdiff.data.prompts import article
from escdiff.evaluation.bench.instances import draw_material, draw_scene, draw_shape, stream
from escdiff.evaluation.bench.pictures import SIZE, draw
from escdiff.mini.world.captions import material_words
from escdiff.mini.world.edits import Edit
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.mini.world.world import Factors

STREAM = 2000  # of random numbers


@dataclass(eq=False)
class Case:
    """An edit and its pictures, all of `SIZE` pixels.

    Attributes:
        before, after: renders. same: (1, H, W), 1 where the two are equal.
        objects: (1, H, W), 1 on the object before or after.
        seed: of the references.
    """

    number: int
    edit: Edit
    before: Image.Image
    after: Image.Image
    same: Tensor
    objects: Tensor
    seed: int = 0

    @property
    def words(self) -> tuple[str, str]:
        """Captions before and after."""
        return scene_caption(self.edit.before), scene_caption(self.edit.after)

    @property
    def expected(self) -> Factors:
        """The object that the picture shows after the edit."""
        (thing,) = self.edit.after.things
        return Factors(thing.shape, thing.material, self.edit.after.scene)

    @property
    def rng(self) -> np.random.Generator:
        """Of the references."""
        return stream(self.seed, STREAM + 10 + self.number)

    @cached_property
    def reference(self) -> tuple[str, Image.Image, str] | None:
        """(attribute, a picture to take it from, the prompt): what an attribute transfer is given. None for another
        background, which is no attribute of an object."""
        if self.edit.kind == "background":
            return None
        rng, expected = self.rng, self.expected
        attribute = "shape" if self.edit.kind == "shape" else "appearance"
        shape, material = expected.shape, expected.material
        if attribute == "shape":
            words = f"{material_words(material)} <shape>"
            material = draw_material(rng, avoid={material.color, material.color2})
        else:
            words = f"<appearance> {shape.family}"
            shape = draw_shape(rng, avoid=(shape.family,))
        picture = draw([Factors(shape, material, draw_scene(rng, material))])[0]
        return attribute, picture, f"a photo of {article(words)} on {article(expected.scene.background)} background"


def make_cases(edits: Sequence[Edit], seed: int = 0) -> list[Case]:
    """Render them."""
    before, after = (render([getattr(edit, side) for edit in edits], SIZE) for side in ("before", "after"))
    same = (before.image == after.image).all(-1)
    objects = before.mask | after.mask
    return [
        Case(
            number, edit, Image.fromarray(before.image[number]), Image.fromarray(after.image[number]),
            _mask(same[number]), _mask(objects[number]), seed,
        )
        for number, edit in enumerate(edits)
    ]  # fmt: skip


def _mask(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)[None].float()
