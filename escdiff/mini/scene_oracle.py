"""The second judge: what stands where in a scene, how things stand to each other, poses, faces.

A network in the manner of CenterNet (Zhou et al. 2019, arXiv 1904.07850): on a grid of 16 x 16 cells it says where the
centre of a thing of each family lies, how far its box reaches and which main colour it has; from the whole picture it
reads the relation, a figure's pose, a face's expression and identity. It shares no weights with what it judges.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from escdiff.mini.judge import Judge, level, neck, words_of
from escdiff.mini.world import world
from escdiff.mini.world.geometry.faces import EXPRESSIONS, FACE, IDENTITY
from escdiff.mini.world.geometry.figures import BODIES, POSES, UNNAMED_POSES
from escdiff.mini.world.scenes import RELATIONS, UNNAMED_RELATIONS

GRID = 16  # cells a side
MOST, LEAST = 3, 0.3  # things of a picture; the least certainty with which one is seen
SAME = 0.6  # overlap of two boxes from which they are of one thing
# A picture does not say which thing is the first: "a left of b" is "b right of a".
BONDS = {name: name for name in (*RELATIONS, *UNNAMED_RELATIONS)} | {
    "left of": "beside", "right of": "beside", "in front of": "in depth", "behind": "in depth",
}  # fmt: skip
CLASSES = {
    "relation": tuple(dict.fromkeys(BONDS.values())),
    "pose": (*POSES, *(f"unnamed{i}" for i in range(len(UNNAMED_POSES)))),
    "expression": tuple(EXPRESSIONS),
    "background": tuple(world.BACKGROUNDS),
}


@dataclass(frozen=True)
class SceneOracleConfig:
    """Configuration of a scene oracle, as its config.json holds it.

    Attributes:
        channels, blocks: of the trunk's levels, at 64, 32, 16 and 8 positions a side.
        width: channels of the grid.
        families, colors: what a thing can be.
        classes: of the whole picture, head -> words.
        identity, face: width of a face's vector of length 1; its parameters, numbers in 0..1.
    """

    channels: tuple[int, ...] = (24, 48, 80, 112)
    blocks: tuple[int, ...] = (0, 0, 1, 2)
    width: int = 64
    families: tuple[str, ...] = (*world.FAMILIES, *BODIES, FACE)
    colors: tuple[str, ...] = tuple(world.COLORS)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CLASSES)
    identity: int = 64
    face: int = len(IDENTITY)

    @classmethod
    def read(cls, file: Path) -> "SceneOracleConfig":
        """Of a config.json."""
        stored = json.loads(file.read_text(encoding="utf-8"))
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        return cls(**{**lists, "classes": words_of(stored["classes"])})


class SceneOracle(Judge):
    """Pictures to things on a grid, and what only the whole picture says."""

    name, settings = "scene_oracle", SceneOracleConfig

    def __init__(self, config: SceneOracleConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SceneOracleConfig()
        *_, third, last = config.channels
        pairs = zip((3, *config.channels), config.channels, config.blocks, strict=False)
        levels = [nn.Sequential(*level(before, after, blocks)) for before, after, blocks in pairs]
        self.fine, self.coarse = nn.Sequential(*levels[:-1]), levels[-1]
        self.from_fine, self.from_coarse = nn.Conv2d(third, config.width, 1), nn.Conv2d(last, config.width, 1)
        joined = nn.Conv2d(config.width, config.width, 3, padding=1, bias=False)
        self.grid = nn.Sequential(joined, nn.BatchNorm2d(config.width), nn.ReLU(inplace=True))
        cells = {"centre": len(config.families), "reach": 4, "color": len(config.colors)}
        self.cells = nn.ModuleDict({name: nn.Conv2d(config.width, size, 1) for name, size in cells.items()})
        nn.init.constant_(self.cells["centre"].bias, -4.0)  # most cells are no centre
        sizes = {name: len(words) for name, words in config.classes.items()} | {"face": config.face}
        self.neck = neck(2 * last, 2 * last)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * last, size) for name, size in sizes.items()})
        self.identity = nn.Linear(2 * last, config.identity)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, 3, 128, 128) in [-1, 1] -> per cell and per picture.

        Per cell "centre" (B, families, 16, 16) and "color" (B, colors, 16, 16), logits, and "reach" (B, 4, 16, 16),
        from the cell's middle to the box's left, top, right, bottom in shares of the side; per picture logits (B, n) of
        `classes`, "face" (B, 12) and "face_id" (B, width) of length 1.
        """
        fine = self.fine(pixels)
        coarse = self.coarse(fine)
        above = nn.functional.interpolate(self.from_coarse(coarse), scale_factor=2.0, mode="nearest")
        grid = self.grid(self.from_fine(fine) + above)
        features = self.neck(torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], -1))
        out = {name: head(grid) for name, head in self.cells.items()}
        out |= {name: head(features) for name, head in self.heads.items()}
        return out | {"face_id": nn.functional.normalize(self.identity(features), dim=-1)}


@dataclass(frozen=True)
class Seen:
    """A thing that a judge sees; the box as shares of the side: left, top, right, bottom."""

    family: str
    color: str
    box: tuple[float, float, float, float]


def find_things(out: Mapping[str, Tensor], config: SceneOracleConfig, least: float = LEAST) -> list[list[Seen]]:
    """The things of each picture, the surest first: cells that are surer than their neighbours, at most `MOST`.

    Args:
        out: of `SceneOracle.forward`.
        least: certainty, 0..1.
    """
    sure = out["centre"].sigmoid()
    peaks = sure * (sure == nn.functional.max_pool2d(sure, 3, 1, 1))
    side = sure.shape[-1]
    values, places = peaks.flatten(1).topk(4 * MOST)
    pictures = []
    for i, (scores, cells) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
        things: list[Seen] = []
        for score, place in zip(scores, cells, strict=True):
            family, y, x = place // side**2, place // side % side, place % side
            left, top, right, bottom = out["reach"][i, :, y, x].tolist()
            middle = ((x + 0.5) / side, (y + 0.5) / side)
            box = (middle[0] - left, middle[1] - top, middle[0] + right, middle[1] + bottom)
            box = tuple(min(max(edge, 0.0), 1.0) for edge in box)
            if score >= least and len(things) < MOST and all(overlap(box, thing.box) < SAME for thing in things):
                color = config.colors[int(out["color"][i, :, y, x].argmax())]
                things.append(Seen(config.families[family], color, box))
        pictures.append(things)
    return pictures


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, each left, top, right, bottom; 0 for boxes without an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = sum(max(b[2] - b[0], 0.0) * max(b[3] - b[1], 0.0) for b in (first, second)) - intersection
    return intersection / union if union > 0 else 0.0
