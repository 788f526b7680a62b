"""Values of painted cases: each metric gets the arguments of its declared `against` (`metrics.base.AGAINST`).

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

from escdiff.data.masks import load_segmenter, subject_mask
from escdiff.data.pictures import open_image
from escdiff.evaluation.bench.copies import distance
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.metrics.attributes import Mask, plain_mask
from escdiff.evaluation.protocols.cases import Case
from escdiff.evaluation.protocols.subjects import Subject

PLAIN, NONE = "plain", "none"
Masker = Callable[[Image.Image, str], Mask]


def masker(name: str) -> Masker | None:
    """Finds the subject: before a plain background, by a segmentation model of transformers, or not at all.

    Raises:
        UserError: no such model.
    """
    if name == NONE:
        return None
    if name == PLAIN:
        return lambda picture, category: plain_mask(picture)
    load_segmenter(name)

    def find(picture: Image.Image, category: str) -> Mask:
        answer = subject_mask(name, picture, category)
        return answer[0] if answer else np.zeros((picture.height, picture.width), bool)

    return find


@dataclass(eq=False)
class Shown:
    """A subject's real pictures, cut to the square that the encoder sees."""

    subject: Subject
    number: int  # of the reference
    find: Masker | None

    @cached_property
    def real(self) -> list[Image.Image]:
        """The subject's photographs, square."""
        return [_square(open_image(path)) for path in self.subject.pictures]

    @property
    def reference(self) -> Image.Image:
        """The photograph that was customized."""
        return self.real[self.number]

    @property
    def others(self) -> list[Image.Image]:
        """The photographs that were not."""
        return [picture for i, picture in enumerate(self.real) if i != self.number]

    @cached_property
    def mask(self) -> Mask:
        """The reference's mask."""
        return self.find(self.reference, self.subject.category)

    @cached_property
    def nearest(self) -> float:
        """Distance from the reference's pixels to the nearest other real picture; nan without others."""
        return float(self.copied(self.others).min()) if self.others else float("nan")

    def copied(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """`copies.distance` of each picture inside the reference's object."""
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
        if metric.against == "real" and len(shown.real) > 1:
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
        if metric.against == "text":
            selected = [i for i, case in enumerate(cases) if case.text]
            if selected:
                put(name, selected, metric.score([pictures[i] for i in selected], [cases[i].text for i in selected]))
        elif metric.against == "real":
            selected = [i for i, case in enumerate(cases) if case.whole]
            if selected:
                target, painted = shown[cases[selected[0]].subject], [pictures[i] for i in selected]
                if target.others:
                    put(name, selected, metric.score(painted, target.others))
                put(f"{name}_all", selected, metric.score(painted, target.real))
    if any(subject.find for subject in shown.values()):
        _attributes(metrics, cases, pictures, shown, put)
    return rows


def _attributes(metrics, cases: Sequence[Case], pictures, shown: Mapping[str, Shown], put) -> None:
    """Shape against the shape's reference and appearance against the appearance's; leaks the other way round."""
    target = shown[cases[0].subject]
    masks = [target.find(p, target.subject.category) for p in pictures]
    every = range(len(cases))
    pairs = {  # which cases, and whose reference
        ("", "shape"): [(i, cases[i].shape) for i in every if cases[i].shape],
        ("", "appearance"): [(i, cases[i].appearance) for i in every if cases[i].appearance],
        ("leak_", "shape"): [(i, cases[i].appearance) for i in every if cases[i].appearance and not cases[i].whole],
        ("leak_", "appearance"): [(i, cases[i].shape) for i in every if cases[i].shape and not cases[i].whole],
    }
    for name, metric in metrics.items():
        if metric.against not in ("shape", "appearance"):
            continue
        for prefix in ("", "leak_"):
            if not (selected := pairs[prefix, metric.against]):
                continue
            numbers, references = [i for i, _ in selected], [shown[subject] for _, subject in selected]
            compared = [[masks[i] for i in numbers], [reference.mask for reference in references]]
            if metric.against == "appearance":
                compared = [
                    [pictures[i] for i in numbers], compared[0],
                    [reference.reference for reference in references], compared[1],
                ]  # fmt: skip
            put(prefix + name, numbers, metric.score(*compared))
    whole = [i for i in every if cases[i].whole]
    if whole and isfinite(target.nearest):
        put("copy", whole, target.copied([pictures[i] for i in whole]) < target.nearest)


def _square(picture: Image.Image) -> Image.Image:
    return ImageOps.fit(picture, (min(picture.size),) * 2)
