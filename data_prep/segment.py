"""`segment`: a mask of the subject for every sample, and only good ones.

Masks come from the data (transparency, given masks) or from a segmentation model of transformers. What covers
too little or too much, falls into pieces, or runs along the picture's rim is left out with its measures.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.ahead import SAID, ahead
from data_prep.dataset import Job, LeftOut, Reject, Run, derive, each_sample, entries, meta_of, read_input
from data_prep.guard import Guard
from data_prep.models import device_here
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.masks import clean, load_segmenter, subject_masks
from escdiff.data.pretrained import check_dtype
from escdiff.data.shards import encode_json, encode_png
from escdiff.support.errors import UserError

SOURCES = ("auto", "alpha", "given", "model")


@dataclass(frozen=True)
class Segment:
    """The stage; all shares are of 1."""

    source: str = "auto"  # auto: what the data have, else the model
    model: str | None = None  # image segmentation (any kind) or CLIPSeg, by folder or hub id
    min_area: float = 0.02  # of the picture
    max_area: float = 0.9
    min_piece: float = 0.7  # of the mask, that its largest piece has
    max_rim: float = 0.5  # of the picture's rim, that the mask covers
    min_score: float = 0.0  # the model's own
    batch: int = 8  # pictures that CLIPSeg sees at once
    device: str = "auto"
    dtype: str = "float32"  # of the model
    name: str = "segment"

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        if self.source not in SOURCES:
            raise UserError(f"--source is {self.source!r}; give one of {', '.join(SOURCES)}")
        if self.source == "model" and not self.model:
            raise UserError("--source is model, but no --model was named; give a folder or hub id")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise UserError(
                f"--min-area is {self.min_area}, --max-area {self.max_area}; give shares, the first smaller"
            )
        if self.batch < 1:
            raise UserError(f"--batch is {self.batch}; give at least 1")
        check_dtype(self.dtype)

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        but = {"name", "device", "batch", *(["dtype"] if self.dtype == "float32" else [])}
        return {key: value for key, value in asdict(self).items() if key not in but}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        raws: Iterator[Any] = read_input(job.source)
        if self.model and self.source in ("auto", "model"):
            load_segmenter(self.model, device_here(self.device), self.dtype)  # before the first sample
            raws = ahead(raws, guard, self.ask, self.answer, self.batch)
        yield from each_sample(raws, guard, self.convert)

    def ask(self, raw: dict[str, Any]) -> tuple[Any, str] | None:
        """(picture, category) of a sample that needs a mask."""
        meta = meta_of(raw)
        if schema.MASK in raw and self.source in ("auto", meta.get("mask", "given")):
            return None
        sample = entries(raw, *schema.IMAGES)
        return sample[schema.image_key(sample)], str(meta.get("category", ""))

    def answer(self, questions: list[tuple[Any, str]]) -> list:
        """Masks of pictures by their categories, in one call of the model."""
        pictures, categories = zip(*questions, strict=True)
        return subject_masks(self.model, pictures, categories, device_here(self.device), self.dtype)

    def convert(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The sample with a good mask.

        Raises:
            LeftOut: there is none.
            UserError: the sample is damaged.
        """
        meta = meta_of(raw)
        origin = str(meta.get("mask", "given")) if schema.MASK in raw else None
        facts: dict[str, Any] = {}
        if SAID in raw:
            if raw[SAID] is None:
                raise LeftOut("the model sees nothing in it")
            mask, score = raw[SAID]
            if score < self.min_score:
                raise LeftOut(f"the model's score of {score:.2f} is below {self.min_score}")
            origin, facts["score"] = self.model, round(score, 3)
        elif origin and self.source in ("auto", origin):
            mask = np.asarray(entries(raw, schema.MASK)[schema.MASK].convert("L")) > 127
        else:
            raise LeftOut(
                f"there is no mask from {self.source}" + ("" if self.model else ", and no --model to make one")
            )
        mask, measures = clean(mask)
        self.judge(measures)
        facts |= {name: round(value, 3) for name, value in measures.items()}
        unchanged = {k: v for k, v in raw.items() if k not in ("__url__", SAID, schema.META, schema.MASK)}
        image = encode_png(mask.astype(np.uint8) * 255)
        return {
            **unchanged,
            schema.MASK: image,
            schema.META: encode_json({**meta, "mask": origin, "mask_quality": facts}),
        }

    def judge(self, measures: dict[str, float]) -> None:
        """Raise `LeftOut` for a mask that is no good subject."""
        area, piece, rim = measures["area"], measures["piece"], measures["rim"]
        if not self.min_area <= area <= self.max_area:
            raise LeftOut(f"the mask covers {area:.3f} of the picture, not {self.min_area} to {self.max_area}")
        if piece < self.min_piece:
            raise LeftOut(f"the mask's largest piece has {piece:.2f} of it, less than {self.min_piece}")
        if rim > self.max_rim:
            raise LeftOut(f"the mask covers {rim:.2f} of the picture's rim, more than {self.max_rim}")


def segment(folder: Path, out: Path, stage: Segment, run: Run) -> Index:
    """Make the dataset `out` of the samples that have a good mask.

    Raises:
        UserError: bad options, no such dataset or model.
    """
    stage.validate()
    return derive(stage, folder, out, run)
