"""`segment`: a mask of the subject for every sample, and only good ones.

Masks come from the data (transparency, given masks) or from a segmentation model of transformers. What covers
too little or too much, falls into pieces, or runs along the picture's rim is left out with its measures.
"""

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep.dataset import Job, LeftOut, Reject, Run, derive, each_sample, entries, meta_of, read_input
from data_prep.guard import Guard
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.shards import encode_json, encode_png
from escdiff.errors import UserError

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
    name: str = "segment"

    def validate(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"--source is {self.source!r}; give one of {', '.join(SOURCES)}")
        if self.source == "model" and not self.model:
            raise UserError("--source is model, but no --model was named; give a folder or hub id")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise UserError(
                f"--min-area is {self.min_area}, --max-area {self.max_area}; give shares, the first smaller"
            )

    def options(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "name"}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        if self.model and self.source in ("auto", "model"):
            load_segmenter(self.model)  # before the first sample, whose fault it would not be
        yield from each_sample(read_input(job.source), guard, self.convert)

    def convert(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The sample with a good mask.

        Raises:
            LeftOut: there is none.
            UserError: the sample is damaged.
        """
        meta = meta_of(raw)
        sample = entries(raw, *schema.IMAGES, schema.MASK)
        picture = sample[schema.image_key(sample)]
        origin = str(meta.get("mask", "given")) if schema.MASK in sample else None
        facts: dict[str, Any] = {}
        if origin and (self.source == "auto" or self.source == origin):
            mask = np.asarray(sample[schema.MASK].convert("L")) > 127
        elif self.model and self.source in ("auto", "model"):
            mask, score = subject_mask(self.model, picture, str(meta.get("category", "")))
            if score < self.min_score:
                raise LeftOut(f"the model's score of {score:.2f} is below {self.min_score}")
            origin, facts["score"] = self.model, round(score, 3)
        else:
            raise LeftOut(
                f"there is no mask from {self.source}" + ("" if self.model else ", and no --model to make one")
            )
        mask, measures = clean(mask)
        self.judge(measures)
        facts |= {name: round(value, 3) for name, value in measures.items()}
        kept = {k: v for k, v in raw.items() if k not in ("__url__", schema.META, schema.MASK)}
        image = encode_png(mask.astype(np.uint8) * 255)
        return {**kept, schema.MASK: image, schema.META: encode_json({**meta, "mask": origin, "mask_quality": facts})}

    def judge(self, measures: dict[str, float]) -> None:
        area, piece, rim = measures["area"], measures["piece"], measures["rim"]
        if not self.min_area <= area <= self.max_area:
            raise LeftOut(f"the mask covers {area:.3f} of the picture, not {self.min_area} to {self.max_area}")
        if piece < self.min_piece:
            raise LeftOut(f"the mask's largest piece has {piece:.2f} of it, less than {self.min_piece}")
        if rim > self.max_rim:
            raise LeftOut(f"the mask covers {rim:.2f} of the picture's rim, more than {self.max_rim}")


def clean(mask: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """A mask (H, W) without specks (under a twentieth of the largest piece), and its measures before that."""
    pieces, count = ndimage.label(mask)
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    if not count:
        return mask, {"area": 0.0, "piece": 0.0, "rim": float(rim)}
    sizes = np.bincount(pieces.ravel())[1:]
    measures = {"area": float(mask.mean()), "piece": float(sizes.max() / sizes.sum()), "rim": float(rim)}
    large = np.flatnonzero(sizes * 20 >= sizes.max()) + 1
    return np.isin(pieces, large), measures


def subject_mask(model: str, picture: Image.Image, category: str) -> tuple[np.ndarray, float]:
    """(bool (H, W), the model's score or 1) of a picture's subject.

    CLIPSeg is asked for the category. Of any other model's segments that of the category is taken, or, if it
    knows none such, the most central large one.

    Raises:
        UserError: no such model.
        LeftOut: the model sees nothing.
    """
    found, processor = load_segmenter(model)
    if processor is not None:
        return _by_words(found, processor, picture, category)
    best: tuple[float, np.ndarray, float] | None = None
    weight = _centre(picture.height, picture.width)
    for piece in found(picture):
        mask = np.asarray(piece["mask"]) > 127
        named = bool(category) and category.lower() in str(piece["label"]).lower()
        rank = float((mask * weight).sum()) + named
        if mask.any() and (best is None or rank > best[0]):
            best = rank, mask, 1.0 if piece.get("score") is None else float(piece["score"])
    if best is None:
        raise LeftOut("the model sees nothing in it")
    return best[1], best[2]


@functools.lru_cache(1)
def load_segmenter(name: str) -> tuple[Any, Any]:
    """(CLIPSeg, its processor), or (a pipeline of transformers, None).

    Raises:
        UserError: it cannot be loaded.
    """
    import transformers

    from data_prep.models import load

    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type
        if kind == "clipseg":
            return load("CLIPSegForImageSegmentation", name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        options = {"image_processor": processor, "model_kwargs": {"use_safetensors": True}}
        return transformers.pipeline("image-segmentation", name, **options), None
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, UserError):
            raise
        what = " ".join(str(error).split())[:300]
        raise UserError(f"the model {name} cannot be loaded ({what}); give a folder or hub id of its kind") from error


def _by_words(model, processor, picture: Image.Image, category: str) -> tuple[np.ndarray, float]:
    import torch

    with torch.inference_mode():
        text = [f"a photo of a {category or 'object'}"]
        inputs = processor(text=text, images=[picture], return_tensors="pt", padding=True).to(model.device)
        logits = model(**inputs).logits
        heat = logits.sigmoid().reshape(1, 1, *logits.shape[-2:])
        heat = torch.nn.functional.interpolate(heat, picture.size[::-1], mode="bilinear")[0, 0].cpu().numpy()
    mask = heat > 0.5
    return mask, float(heat[mask].mean()) if mask.any() else 0.0


def _centre(height: int, width: int) -> np.ndarray:
    """Weights (H, W) that sum to 1, largest in the middle."""
    y, x = (np.exp(-0.5 * (np.linspace(-1, 1, n) / 0.5) ** 2) for n in (height, width))
    weight = y[:, None] * x[None]
    return weight / weight.sum()


def segment(folder: Path, out: Path, stage: Segment, run: Run) -> Index:
    """Make the dataset `out` of the samples that have a good mask.

    Raises:
        UserError: bad options, no such dataset or model.
    """
    stage.validate()
    return derive(stage, folder, out, run)
