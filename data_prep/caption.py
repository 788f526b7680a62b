"""`caption`: captions, nouns and captions that say nothing about appearance.

The given caption is kept; where there is none a model of transformers may look at the picture. The json gets
`caption`, `caption_neutral` (without colour, pattern, finish and material words) and `category` (a noun).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.dataset import Job, LeftOut, Reject, Run, derive, each_sample, entries, meta_of, read_input
from data_prep.guard import Guard
from data_prep.models import load
from data_prep.words import neutral, noun
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.shards import encode_json
from escdiff.errors import UserError

KIND = "AutoModelForImageTextToText"
FORMAT = 1  # raise when the word lists or rules change


@dataclass(frozen=True)
class Caption:
    """The stage; without a model only given captions are used."""

    model: str | None = None  # image-text-to-text model of transformers
    prompt: str | None = None  # what the model is asked, if it wants to be
    again: bool = False  # also where a caption is given
    max_words: int = 40  # tokens the model may say
    batch: int = 8
    require: bool = False  # leave out what has no category in the end
    name: str = "caption"

    def options(self) -> dict[str, Any]:
        values = {"format": FORMAT, "require": self.require}
        if self.model:
            keys = ("model", "prompt", "again", "max_words", "batch")
            values |= {key: getattr(self, key) for key in keys}
        return values

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        raws: Iterator[Any] = read_input(job.source)
        yield from each_sample(self.said(raws, guard) if self.model else raws, guard, self.convert)

    def said(self, raws: Iterator[dict[str, Any]], guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """Samples with the model's caption under "__caption__" where one is wanted, in order."""
        load(KIND, self.model)  # before the first sample, whose fault it would not be
        rows: list[tuple[Any, Any]] = []
        for raw in raws:
            try:
                with guard.sample(raw["__key__"]):
                    rows.append((raw, self.picture(raw)))
            except UserError as error:
                rows.append((Reject(raw["__key__"], str(error)), None))
            if sum(picture is not None for _, picture in rows) == self.batch:
                yield from self._speak(rows)
                rows = []
        yield from self._speak(rows)

    def picture(self, raw: dict[str, Any]):
        """The picture to caption, or None where its caption stays."""
        if meta_of(raw).get("caption") and not self.again:
            return None
        sample = entries(raw, *schema.IMAGES)
        return sample[schema.image_key(sample)]

    def _speak(self, rows: list[tuple[Any, Any]]) -> Iterator[dict[str, Any] | Reject]:
        pictures = [picture for _, picture in rows if picture is not None]
        texts = iter(describe(self.model, pictures, self.prompt, self.max_words) if pictures else ())
        for raw, picture in rows:
            yield raw if picture is None else {**raw, "__caption__": next(texts)}

    def convert(self, raw: dict[str, Any]) -> dict[str, Any]:
        meta = meta_of(raw)
        caption = str(raw.get("__caption__") or meta.get("caption") or "").strip()
        category = meta.get("category") or noun(caption)
        if self.require and not category:
            raise LeftOut("neither its json nor its caption names what it shows")
        found = {
            "caption": caption,
            "caption_neutral": neutral(caption),
            **({"category": category} if category else {}),
        }
        if "__caption__" in raw:
            found["caption_by"] = self.model
        kept = {k: v for k, v in raw.items() if k not in ("__url__", "__caption__", schema.META)}
        return {**kept, schema.META: encode_json({**meta, **found})}


def describe(model_name: str, pictures: list, prompt: str | None, max_words: int) -> list[str]:
    """What a model says about each picture; its first guess, so always the same.

    Raises:
        UserError: no such model.
    """
    model, processor = load(KIND, model_name)
    asked = {"text": [prompt] * len(pictures), "padding": True} if prompt else {}
    with torch.inference_mode():
        inputs = processor(images=pictures, return_tensors="pt", **asked).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=max_words, do_sample=False)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    start = prompt or ""
    return [" ".join(text.removeprefix(start).split()) for text in texts]


def caption(folder: Path, out: Path, stage: Caption, run: Run) -> Index:
    """Make the dataset `out` with captions, neutral captions and categories.

    Raises:
        UserError: no such dataset or model.
    """
    return derive(stage, folder, out, run)
