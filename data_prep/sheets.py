"""Contact sheets of Still Life: what each part of the world looks like, for people to judge it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from escdiff.mini.world import captions, scenes, world
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.edits import KINDS, sample_edit
from escdiff.mini.world.geometry import faces, figures
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.mini.world.world import Factors, Shape
from escdiff.support.files import make_folder
from escdiff.support.picture_grid import picture_grid

COLUMNS, CELL = 8, 96
LARGEST = 390_000  # bytes; a larger sheet is written in 256 colours
Picture = Factors | Arrangement


def make_sheets(out: Path, seed: int = 0) -> list[Path]:
    """Write every sheet of `SHEETS` into `out` as PNG; the same seed gives the same sheets.

    Raises:
        UserError: `out` cannot be made a folder or written to.
    """
    make_folder(out)
    paths = []
    for name, draw in SHEETS.items():
        rows, labels, heads, cell, width = draw(np.random.default_rng([seed, *name.encode()]))
        images = iter(render([picture for row in rows for picture in row], 128).image)
        pictures = [[Image.fromarray(next(images)) for _ in row] for row in rows]
        sheet = picture_grid(pictures, labels, heads, cell, width)
        paths.append(out / f"{name}.png")
        sheet.save(paths[-1], optimize=True)
        if paths[-1].stat().st_size > LARGEST:
            sheet.quantize(256, dither=Image.Dither.NONE).save(paths[-1], optimize=True)
    return paths


Sheet = tuple[list[list[Picture]], Sequence[str], Sequence[str], int, int]  # rows, labels, heads, cell, label width


def _instances(rng: np.random.Generator, families: Sequence[str]) -> Sheet:
    """Eight instances of each family in one material and scene: only the shape differs."""
    rows = []
    for family in families:
        look = world.sample_factors(rng)
        while look.material.pattern != "plain":
            look = world.sample_factors(rng)
        rows.append([Factors(world.sample_shape(rng, (family,)), look.material, look.scene) for _ in range(COLUMNS)])
    return rows, families, (), CELL, 62


def _materials(rng: np.random.Generator) -> Sheet:
    """Eight materials of each pattern on one shape."""
    shape, rows = Shape("mug", (0.8, 0.6, 0.5, 0.5)), []
    for pattern in world.PATTERNS:
        materials = [world.sample_material(rng, (pattern,)) for _ in range(COLUMNS)]
        rows.append([Factors(shape, m, world.sample_scene(rng, m)) for m in materials])
    return rows, world.PATTERNS, (), CELL, 70


def _captions(rng: np.random.Generator) -> Sheet:
    """Pictures beside their caption at three lengths."""
    drawn = [world.sample_factors(rng) for _ in range(8)]
    labels = [" / ".join(captions.describe(f, length).text for length in captions.LENGTHS) for f in drawn]
    return [[f] for f in drawn], labels, (), 128, 520


def _things(rng: np.random.Generator) -> Sheet:
    rows = []
    for _ in range(5):
        looks = [world.sample_factors(rng) for _ in range(COLUMNS)]
        rows.append([Factors(world.sample_thing(rng), f.material, f.scene) for f in looks])
    return rows, (), (), CELL, 0


def _textures(rng: np.random.Generator) -> Sheet:
    rows = []
    shown = {"ball": (0.9, 0.9, 0.1, 0.0), "cube": (0.9, 0.8, 0.3, 0.0), "mug": (0.9, 0.7, 0.5, 0.5)}
    for shape in (Shape(family, params) for family, params in shown.items()):
        for _ in range(2):
            materials = [world.sample_texture(rng) for _ in range(COLUMNS)]
            rows.append([Factors(shape, m, world.sample_scene(rng, m)) for m in materials])
    return rows, (), (), CELL, 0


def _scenes(rng: np.random.Generator) -> Sheet:
    relations = (*scenes.RELATIONS, *scenes.UNNAMED_RELATIONS)
    rows = [[scenes.sample_arrangement(rng, (relation,)) for _ in range(6)] for relation in relations]
    labels = [f"{relation}: {scene_caption(row[0])}" for relation, row in zip(relations, rows, strict=True)]
    return rows, labels, (), CELL, 210


def _figures(rng: np.random.Generator) -> Sheet:
    poses = (*figures.POSES, *(f"unnamed{i}" for i in range(len(figures.UNNAMED_POSES))))
    rows = [[scenes.sample_figure(rng, (pose,), (body,)) for pose in poses] for body in figures.BODIES]
    return rows, figures.BODIES, poses, 72, 50


def _faces(rng: np.random.Generator) -> Sheet:
    """One identity a row, in every expression, then the expressions on other identities."""
    rows = []
    for _ in range(5):
        face = scenes.sample_face(rng)
        rows.append([face.with_thing(0, face=vector) for vector in faces.EXPRESSIONS.values()])
    rows += [[scenes.sample_face(rng, (name,)) for name in faces.EXPRESSIONS]]
    return rows, (), tuple(faces.EXPRESSIONS), CELL, 0


def _edits(rng: np.random.Generator) -> Sheet:
    rows, labels = [], []
    for kind in KINDS:
        edits = [sample_edit(rng, (kind,)) for _ in range(3)]
        rows.append([picture for edit in edits for picture in (edit.before, edit.after)])
        labels.append("; ".join(edit.instruction for edit in edits))
    return rows, labels, (), CELL, 260


SHEETS: dict[str, Callable[[np.random.Generator], Sheet]] = {
    **{f"instances_{i + 1}": partial(_instances, families=world.FAMILIES[5 * i : 5 * i + 5]) for i in range(4)},
    "materials": _materials, "captions": _captions, "things": _things, "textures": _textures,
    "scenes": _scenes, "figures": _figures, "faces": _faces, "edits": _edits,
}  # fmt: skip
