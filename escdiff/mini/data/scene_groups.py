"""Groups of Still Life besides single objects: scenes, figures, faces, pairs before and after an edit."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from escdiff.mini.world import scenes, world
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.edits import sample_edit
from escdiff.mini.world.geometry.figures import POSES, UNNAMED_POSES
from escdiff.mini.world.world import Factors

UNNAMED_SHARE = 0.15  # share of relations and poses that no caption names
KINDS = ("scenes", "figures", "faces", "edits")


@dataclass(frozen=True)
class Sample:
    """A picture to render and what its json says besides its caption and factors."""

    picture: Factors | Arrangement
    meta: dict[str, Any] = field(default_factory=dict)


def sample_scenes(kind: str, count: int, rng: np.random.Generator, held_out: bool) -> list[Sample]:
    """`count` samples of one of `KINDS`; of edits, count / 2 pairs, before and after in turn.

    Without `held_out` no thing has a combination that `world.held_out` keeps.
    """
    samples: list[Sample] = []
    while len(samples) < count:
        drawn = _edit(rng) if kind == "edits" else [Sample(_one(kind, rng))]
        things = [thing for sample in drawn for thing in sample.picture.things]
        if held_out or not any(world.held_out(thing.shape, thing.material) for thing in things):
            samples += drawn
    return samples


def _one(kind: str, rng: np.random.Generator) -> Arrangement:
    unnamed = bool(rng.random() < UNNAMED_SHARE)
    if kind == "scenes":
        return scenes.sample_arrangement(rng, scenes.UNNAMED_RELATIONS if unnamed else scenes.RELATIONS)
    if kind == "figures":
        poses = tuple(f"unnamed{i}" for i in range(len(UNNAMED_POSES))) if unnamed else tuple(POSES)
        return scenes.sample_figure(rng, poses)
    return scenes.sample_face(rng)


def _edit(rng: np.random.Generator) -> list[Sample]:
    edit = sample_edit(rng)
    facts = {"instruction": edit.instruction, "edit": edit.kind}
    return [Sample(edit.before, {**facts, "side": "before"}), Sample(edit.after, {**facts, "side": "after"})]
