"""`caption`: captions, nouns and captions that say nothing about appearance.

The given caption is kept; where there is none a model of transformers may look at the picture. The json gets
`caption`, `caption_neutral` (without colour, pattern, finish and material words) and `category` (a noun).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from data_prep.ahead import SAID, ahead
from data_prep.dataset import Job, LeftOut, Reject, Run, derive, each_sample, entries, meta_of, read_input
from data_prep.guard import Guard
from data_prep.models import device_here
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.photos.captions import neutral, noun
from escdiff.data.pictures import expand
from escdiff.data.pretrained import check_dtype, load_model, one_thread
from escdiff.data.shards import encode_json, read_raw
from escdiff.support.errors import UserError

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
    device: str = "auto"
    dtype: str = "float32"  # of the model
    name: str = "caption"

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        check_dtype(self.dtype)
        if self.batch < 1 or self.max_words < 1:
            raise UserError(f"--batch is {self.batch} and --max-words {self.max_words}; give at least 1")

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        values = {"format": FORMAT, "require": self.require}
        if self.model:
            keys = ("model", "prompt", "again", "max_words", "batch")
            values |= {key: getattr(self, key) for key in (*keys, *(["dtype"] if self.dtype != "float32" else []))}
        return values

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        raws: Iterator[Any] = read_input(job.source)
        if self.model:
            load_model(KIND, self.model, device=device_here(self.device), dtype=self.dtype)  # before the first sample
            raws = ahead(raws, guard, self.ask, self.describe, self.batch)
        yield from each_sample(raws, guard, self.convert)

    def ask(self, raw: dict[str, Any]):
        """The picture to caption, or None where its caption stays."""
        if meta_of(raw).get("caption") and not self.again:
            return None
        sample = entries(raw, *schema.IMAGES)
        return sample[schema.image_key(sample)]

    def describe(self, pictures: list) -> list[str]:
        """The model's caption of each picture, by greedy decoding, so always the same."""
        model, processor = load_model(KIND, self.model, device=device_here(self.device), dtype=self.dtype)
        prompts = {"text": [self.prompt] * len(pictures), "padding": True} if self.prompt else {}
        with one_thread(), torch.inference_mode():
            inputs = processor(images=pictures, return_tensors="pt", **prompts).to(model.device, model.dtype)
            tokens = model.generate(**inputs, max_new_tokens=self.max_words, do_sample=False)
        texts = processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.removeprefix(self.prompt or "").split()) for text in texts]

    def convert(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The sample with its captions and its category."""
        meta = meta_of(raw)
        caption = str(raw.get(SAID) or meta.get("caption") or "").strip()
        category = meta.get("category") or noun(caption)
        if self.require and not category:
            raise LeftOut("neither its json nor its caption names what it shows")
        facts = {
            "caption": caption,
            "caption_neutral": neutral(caption),
            **({"category": category} if category else {}),
        }
        if SAID in raw:
            facts["caption_by"] = self.model
        entries = {k: v for k, v in raw.items() if k not in ("__url__", SAID, schema.META)}
        return {**entries, schema.META: encode_json({**meta, **facts})}


def caption(folder: Path, out: Path, stage: Caption, run: Run) -> Index:
    """Make the dataset `out` with captions, neutral captions and categories.

    Raises:
        UserError: bad options, no such dataset or model.
    """
    stage.validate()
    index = derive(stage, folder, out, run)
    if not run.dry and (silent := _without_captions(expand(out), index)):
        hint = "" if stage.model else "; --model names a captioning model that looks at them"
        typer.echo(f"caption: {silent} of {index.samples} samples have no caption{hint}", err=True)
    return index


def _without_captions(folder: Path, index: Index) -> int:
    """Samples about which no word is said."""
    raws = (raw for shard in index.filled for raw in read_raw(folder / shard.name, only=(schema.META,)))
    return sum(not meta_of(raw)["caption"] for raw in raws)
