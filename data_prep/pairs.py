"""`pairs`: which references training may draw for every sample, measured beforehand.

Training draws references anew at every visit. Where the data say which samples show the same object (`object` in the
json), those of its other pictures are listed whose outline (`same_shape`) or colours (`same_appearance`) agree. For the
rest training draws views of the picture itself in which the other attribute is destroyed; a picture for which no good
view is found is left out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.dataset import Job, LeftOut, Reject, Run, derive, each_sample, entries, meta_of, read_input
from data_prep.guard import Guard
from data_prep.likeness import colour_change, colour_distance, outline_overlap, same_arrangement
from escdiff.concept import ATTRIBUTES
from escdiff.data import schema, views
from escdiff.data.index import Index
from escdiff.data.photos.objects import number_of
from escdiff.data.photos.samples import AGREE
from escdiff.data.pictures import to_pixels
from escdiff.data.shards import encode_json
from escdiff.support.errors import UserError

COMPARED = 8  # pictures of an object with which each of them is compared


@dataclass(frozen=True)
class Pairs:
    """The stage. Distances are in CIE Lab, where 2 is just seen and 100 lies between black and white."""

    size: int = 224  # pixels; side at which pictures are compared
    seed: int = 0
    tries: int = 8  # views drawn before a picture is left out
    min_overlap: float = 0.6  # IoU of the outlines of target and shape reference, both cut to their boxes
    min_change: float = 12.0  # mean distance, pixel by pixel, of a recoloured object from itself
    max_distance: float = 15.0  # of mean colours of target and appearance reference
    max_arrangement: float = 0.6  # correlation of their brightness, pixel by pixel
    name: str = "pairs"

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        if self.size < 16 or self.tries < 1:
            raise UserError(f"--size is {self.size} and --tries {self.tries}; give at least 16 and 1")
        if not 0 <= self.min_overlap <= 1:
            raise UserError(f"--min-overlap is {self.min_overlap}; give a share from 0 to 1")

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        kin = self.kin(job, guard)
        yield from each_sample(read_input(job.source), guard, lambda raw: self.convert(raw, kin))

    def kin(self, job: Job, guard: Guard) -> dict[str, list[dict[str, Any]]]:
        """object -> its raw samples, for the objects that have several in this shard."""
        by_object = defaultdict(list)
        for raw in read_input(job.source):
            try:
                with guard.sample(raw["__key__"]):
                    name = meta_of(raw).get("object")
                    if name is not None:
                        self.read(raw)
                        by_object[str(name)].append(raw)
            except UserError:
                continue  # the second reading says so
        return {name: rows for name, rows in by_object.items() if len(rows) > 1}

    def read(self, raw: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Pixels (3, S, S) in [-1, 1] and mask (1, S, S), as training will cut them."""
        sample = entries(raw, *schema.IMAGES, schema.MASK)
        pixels = to_pixels(sample[schema.image_key(sample)], self.size)
        mask = sample.get(schema.MASK)
        return pixels, None if mask is None else (to_pixels(mask.convert("RGB"), self.size)[:1] > 0).float()

    def convert(self, raw: dict[str, Any], kin: dict) -> dict[str, Any]:
        """The sample with the references that are good for it."""
        pixels, mask = self.read(raw)
        meta = meta_of(raw)
        relatives = [other for other in kin.get(str(meta.get("object")), ()) if other["__key__"] != raw["__key__"]]
        lists, notes = {}, {}
        for number, attribute in enumerate(ATTRIBUTES):
            rng = np.random.default_rng([self.seed, number_of(raw["__key__"]), number])
            judge = self.judge_shape if attribute == "shape" else self.judge_appearance
            agreeing = self.agreeing(pixels, mask, relatives, judge, rng)
            if relatives:
                lists[AGREE[attribute]] = sorted(agreeing)
            notes[attribute] = agreeing or self.view(pixels, mask, attribute, rng)
        entries = {k: v for k, v in raw.items() if k not in ("__url__", schema.META)}
        return {**entries, schema.META: encode_json({**meta, **lists, "references": notes})}

    def agreeing(self, pixels, mask, relatives, judge: Callable, rng) -> dict[str, dict[str, float]]:
        """Key -> measures of the object's other pictures that agree in the attribute."""
        agreed = {}
        for i in rng.permutation(len(relatives))[:COMPARED]:
            scores = judge(pixels, mask, *self.read(relatives[i]))
            if all(good for _, good in scores.values()):
                agreed[relatives[i]["__key__"]] = _rounded(scores)
        return agreed

    def judge_shape(self, pixels, mask, other, its_mask) -> dict[str, tuple[float, bool]]:
        """Measures by name, each with whether it is good enough. Without masks nothing tells that outlines agree."""
        overlap = 0.0 if mask is None or its_mask is None else outline_overlap(mask, its_mask)
        return {"overlap": (overlap, overlap >= self.min_overlap)}

    def judge_appearance(self, pixels, mask, other, its_mask) -> dict[str, tuple[float, bool]]:
        """Figure and verdict: whether another picture has the same colours."""
        distance = colour_distance(pixels, other, mask, its_mask)
        return {"distance": (distance, distance <= self.max_distance)}

    def view(self, pixels: Tensor, mask: Tensor | None, attribute: str, rng) -> dict[str, float]:
        """The measures of a destroyed view of the picture itself that is good enough.

        Raises:
            LeftOut: none of `tries` is.
        """
        draw = self.draw_shape if attribute == "shape" else self.draw_appearance
        for _ in range(self.tries):
            scores = draw(pixels, mask, rng)
            if all(good for _, good in scores.values()):
                return _rounded(scores)
        shown = ", ".join(f"{name} {value:.2f}" for name, (value, good) in scores.items() if not good)
        raise LeftOut(f"no good {attribute} view in {self.tries} tries ({shown})")

    def draw_shape(self, pixels, mask, rng) -> dict[str, tuple[float, bool]]:
        recoloured = views.recolor(pixels, rng)
        change = colour_change(pixels, recoloured, mask)
        covered = torch.ones_like(pixels[:1]) if mask is None else mask
        _, outline = views.reframe_both(recoloured, covered, rng)
        scores = {"change": (change, change >= self.min_change)}
        if mask is not None:
            overlap = outline_overlap(mask, outline)
            scores["overlap"] = (overlap, overlap >= self.min_overlap)
        return scores

    def draw_appearance(self, pixels, mask, rng) -> dict[str, tuple[float, bool]]:
        view = views.appearance_view(pixels, rng, mask)
        distance = colour_distance(pixels, view, mask, None)
        arranged = same_arrangement(pixels, view)
        return {
            "distance": (distance, distance <= self.max_distance),
            "arrangement": (arranged, arranged <= self.max_arrangement),
        }


def _rounded(scores: dict[str, tuple[float, bool]]) -> dict[str, float]:
    return {name: round(value, 3) for name, (value, _) in scores.items()}


def pairs(folder: Path, out: Path, stage: Pairs, run: Run) -> Index:
    """Make the dataset `out` of what has references.

    Raises:
        UserError: bad options, no such dataset.
    """
    stage.validate()
    return derive(stage, folder, out, run)
