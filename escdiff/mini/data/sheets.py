"""Sheets for the scene oracle: arrangements, single things, figures and faces from streams of the judge's own.

A face's identity is its twelve parameters; its views differ in expression, hair, light and background.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from escdiff.mini.data.chunks import Chunked, build_chunks
from escdiff.mini.scene_oracle import BONDS, CLASSES, MOST, SceneOracleConfig
from escdiff.mini.world import scenes, world
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.geometry.faces import FACE
from escdiff.mini.world.geometry.figures import BODIES, POSES, UNNAMED_POSES
from escdiff.mini.world.rendering.render import Rendered, boxes

STREAM = 780_000  # of random numbers, apart from those of data_prep, of the line-ups and of the bench
SCENES, SINGLES, FIGURES, IDENTITIES, VIEWS = 8, 2, 2, 2, 2  # pictures of a sheet; faces are identities x views
PICTURES = SCENES + SINGLES + FIGURES + IDENTITIES * VIEWS
PER_CHUNK = 4  # sheets in one file
ABSENT = -1


def sheet(seed: int, number: int) -> list[Arrangement]:
    """Sheet `number` of a seed: scenes, single things, figures, then faces, the views of each behind each other."""
    rng = np.random.default_rng((seed, STREAM, number))
    relations = (*scenes.RELATIONS, *scenes.UNNAMED_RELATIONS)
    poses = (*POSES, *(f"unnamed{i}" for i in range(len(UNNAMED_POSES))))
    pictures = [scenes.sample_arrangement(rng, relations) for _ in range(SCENES)]
    pictures += [Arrangement.of(world.sample_factors(rng)) for _ in range(SINGLES)]
    pictures += [scenes.sample_figure(rng, poses) for _ in range(FIGURES)]
    for _ in range(IDENTITIES):
        params = scenes.sample_face(rng).things[0].shape.params
        pictures += [face_of(params, rng) for _ in range(VIEWS)]
    return pictures


def face_of(params: tuple[float, ...], rng: np.random.Generator) -> Arrangement:
    """A view of the face with these twelve parameters; all else is drawn anew."""
    face = scenes.sample_face(rng)
    return face.with_thing(0, shape=replace(face.things[0].shape, params=params))


def build_sheets(folder: Path, count: int, seed: int, size: int = 128, workers: int = 0) -> None:
    """Render sheets into `folder`, chunk by chunk; what is there already is kept.

    Args:
        count: of sheets, rounded up to whole chunks.
        size: pixels a side.
        workers: processes; 0 renders in this one.
    """
    per_chunk = PER_CHUNK * PICTURES
    build_chunks(folder, -(-count // PER_CHUNK), per_chunk, partial(_chunk, seed), size, workers, _with_boxes)


def _chunk(seed: int, chunk: int) -> list[Arrangement]:
    numbers = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
    return [picture for number in numbers for picture in sheet(seed, number)]


def _with_boxes(pictures: Sequence[Arrangement], rendered: Rendered) -> list[dict]:
    visible = [boxes(masks).tolist() for masks in rendered.visible]
    return [{"picture": p.to_dict(), "boxes": shown} for p, shown in zip(pictures, visible, strict=True)]


class Sheets(Chunked):
    """Batches of sheets: pixels (B * 16, 3, H, W) in [-1, 1] and, per picture, what is to be read, see `labels_of`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PICTURES, PER_CHUNK * PICTURES)
        records = self.described()
        pictures = [Arrangement.from_dict(record["picture"]) for record in records]
        self.labels = labels_of(pictures, [record["boxes"] for record in records])


def labels_of(pictures: Sequence[Arrangement], visible: Sequence[Sequence[Sequence[float]]]) -> dict[str, Tensor]:
    """Targets of a scene oracle for pictures of sheets, in order.

    Args:
        visible: per picture the box of each thing's visible part; zeros where nothing of it can be seen.

    Returns:
        "family" (N, 3), `ABSENT` where there is no such thing; "box" (N, 3, 4); "color" (N, 3, colors), shares of the
        colours that count as its main one; (N,) numbers of `CLASSES`, "face_id", `ABSENT` where there is none; "face"
        (N, 12).
    """
    config, count = SceneOracleConfig(), len(pictures)
    labels = {
        "family": torch.full((count, MOST), ABSENT), "box": torch.zeros(count, MOST, 4),
        "color": torch.zeros(count, MOST, len(config.colors)), "face": torch.zeros(count, config.face),
        **{name: torch.full((count,), ABSENT) for name in (*CLASSES, "face_id")},
    }  # fmt: skip
    for i, (picture, visible_boxes) in enumerate(zip(pictures, visible, strict=True)):
        for k, (thing, box) in enumerate(zip(picture.things, visible_boxes, strict=True)):
            labels["box"][i, k] = torch.tensor(box)
            if any(box):
                labels["family"][i, k] = config.families.index(thing.shape.family)
            named = main_colors(thing)
            for color in named:
                labels["color"][i, k, config.colors.index(color)] = 1 / len(named)
            if thing.shape.family == FACE:
                labels["face"][i] = torch.tensor(thing.shape.params)
        for name, word in picture_words(picture).items():
            labels[name][i] = CLASSES[name].index(word)
    faces = labels["expression"] != ABSENT
    labels["face_id"][faces] = torch.arange(int(faces.sum())) // VIEWS
    return labels


def main_colors(thing: Thing) -> tuple[str, ...]:
    """The colours that count as a thing's main one: two where its pattern treats both alike."""
    alike = thing.material.pattern in world.TWO_ALIKE
    return (thing.material.color, thing.material.color2) if alike else (thing.material.color,)


def picture_words(picture: Arrangement) -> dict[str, str]:
    """Name of `CLASSES` -> its word, for those that a picture shows."""
    shown = {"background": picture.scene.background, "expression": picture.names.get("expression", "")}
    shown["relation"] = BONDS[picture.relation] if picture.relation else ""
    shown["pose"] = picture.names.get("pose", "") if picture.things[0].shape.family in BODIES else ""
    return {name: word for name, word in shown.items() if word}
