"""Values of painted cases: which metric is asked what.

The reference is no real picture to be near to: scores leave it out, and count it too under the name with `_all`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from PIL import Image, ImageOps
from torchmetrics import Metric

from data_prep.dataset import LeftOut
from data_prep.segment import load_segmenter, subject_mask
from escdiff.data.images import open_image
from escdiff.evaluation.copies import distance
from escdiff.evaluation.metrics.attributes import GramDistance, LabDistance, Mask, MaskIoU, plain_mask
from escdiff.evaluation.metrics.perceptual import DreamSim, Lpips
from escdiff.evaluation.metrics.similarity import ImageSimilarity, TextSimilarity
from escdiff.evaluation.models import pixels_of
from escdiff.evaluation.protocols.cases import Case
from escdiff.evaluation.protocols.subjects import Subject

AGAINST_REAL = (ImageSimilarity, Lpips, DreamSim)
PLAIN, NONE = "plain", "none"
Masker = Callable[[Image.Image, str], Mask]


def masker(how: str) -> Masker | None:
    """Finds the subject: before a plain background, by a segmentation model of transformers, or not at all.

    Raises:
        UserError: no such model.
    """
    if how == NONE:
        return None
    if how == PLAIN:
        return lambda picture, category: plain_mask(picture)
    load_segmenter(how)

    def find(picture: Image.Image, category: str) -> Mask:
        try:
            return subject_mask(how, picture, category)[0]
        except LeftOut:
            return np.zeros((picture.height, picture.width), bool)

    return find


@dataclass(eq=False)
class Shown:
    """A subject's real pictures, cut to the square that the encoder sees."""

    subject: Subject
    number: int  # of the reference
    find: Masker | None

    @cached_property
    def real(self) -> list[Image.Image]:
        return [_square(open_image(path)) for path in self.subject.pictures]

    @property
    def reference(self) -> Image.Image:
        return self.real[self.number]

    @property
    def others(self) -> list[Image.Image]:
        return [picture for i, picture in enumerate(self.real) if i != self.number]

    @cached_property
    def mask(self) -> Mask:
        return self.find(self.reference, self.subject.category)

    @cached_property
    def nearest(self) -> float:
        """How near the nearest other real picture comes to the pixels of the reference; nan without others."""
        return float(self.copied(self.others).min()) if self.others else float("nan")

    def copied(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """See `copies.distance`, inside the reference's object."""
        count, mask = len(pictures), torch.from_numpy(np.asarray(self.mask))
        if not mask.any():
            return np.full(count, np.nan)
        side = 256
        small = Image.fromarray(self.mask).resize((side, side), Image.Resampling.NEAREST)
        reference = pixels_of([self.reference], side).expand(count, -1, -1, -1)
        inside = torch.from_numpy(np.asarray(small).copy())[None].expand(count, -1, -1)
        return distance(pixels_of(pictures, side), reference, inside)


def judge_real(metrics: Mapping[str, Metric], shown: Shown) -> list[dict[str, float]]:
    """Each real picture against the others of its subject."""
    rows: list[dict[str, float]] = [{} for _ in shown.real]
    for name, metric in metrics.items():
        if isinstance(metric, AGAINST_REAL) and len(shown.real) > 1:
            for i, picture in enumerate(shown.real):
                rows[i][name] = metric.score([picture], shown.real[:i] + shown.real[i + 1 :]).item()
    return rows


def judge(
    metrics: Mapping[str, Metric], cases: Sequence[Case], pictures: Sequence[Image.Image], shown: Mapping[str, Shown]
) -> list[dict[str, float]]:
    """Name -> value for each case. Cases of one call have the same subjects."""
    rows: list[dict[str, float]] = [{} for _ in cases]

    def put(name: str, numbers: Sequence[int], values) -> None:
        for i, value in zip(numbers, np.asarray(values, float).tolist(), strict=True):
            if isfinite(value):
                rows[i][name] = value

    for name, metric in metrics.items():
        if isinstance(metric, TextSimilarity):
            some = [i for i, case in enumerate(cases) if case.text]
            if some:
                put(name, some, metric.score([pictures[i] for i in some], [cases[i].text for i in some]))
        elif isinstance(metric, AGAINST_REAL):
            some = [i for i, case in enumerate(cases) if case.whole]
            if some:
                own, those = shown[cases[some[0]].subject], [pictures[i] for i in some]
                if own.others:
                    put(name, some, metric.score(those, own.others))
                put(f"{name}_all", some, metric.score(those, own.real))
    if any(one.find for one in shown.values()):
        _attributes(metrics, cases, pictures, shown, put)
    return rows


def _attributes(metrics, cases: Sequence[Case], pictures, shown: Mapping[str, Shown], put) -> None:
    """Shape against the shape's reference and appearance against the appearance's; leaks the other way round."""
    own = shown[cases[0].subject]
    masks = [own.find(p, own.subject.category) for p in pictures]
    every = range(len(cases))
    pairs = {  # which cases, and whose reference, for outline and for colours
        ("", "outline"): [(i, cases[i].shape) for i in every if cases[i].shape],
        ("", "colours"): [(i, cases[i].appearance) for i in every if cases[i].appearance],
        ("leak_", "outline"): [(i, cases[i].appearance) for i in every if cases[i].appearance and not cases[i].whole],
        ("leak_", "colours"): [(i, cases[i].shape) for i in every if cases[i].shape and not cases[i].whole],
    }
    for name, metric in metrics.items():
        kind = "outline" if isinstance(metric, MaskIoU) else "colours"
        if not isinstance(metric, MaskIoU | LabDistance | GramDistance):
            continue
        for prefix in ("", "leak_"):
            if not (some := pairs[prefix, kind]):
                continue
            numbers, theirs = [i for i, _ in some], [shown[subject] for _, subject in some]
            mine, other = [masks[i] for i in numbers], [one.mask for one in theirs]
            if kind == "outline":
                put(prefix + name, numbers, metric.score(mine, other))
            else:
                look, there = [pictures[i] for i in numbers], [one.reference for one in theirs]
                put(prefix + name, numbers, metric.score(look, mine, there, other))
    whole = [i for i in every if cases[i].whole]
    if whole and isfinite(own.nearest):
        put("copy", whole, own.copied([pictures[i] for i in whole]) < own.nearest)


def _square(picture: Image.Image) -> Image.Image:
    return ImageOps.fit(picture, (min(picture.size),) * 2)
