"""Held-out photographs: batches for the validation loss, and true swaps for sample grids."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from escdiff.concept import ATTRIBUTES
from escdiff.data import prompts, schema
from escdiff.data.photos.objects import number_of, thing_of
from escdiff.data.photos.prompts import photo_prompt
from escdiff.data.photos.samples import PhotoSamples, collate, floats
from escdiff.support.errors import UserError

TARGET = ("pixels", "mask")  # entries of a batch
KEPT = 256  # held-out photographs, undecoded, in memory: with 200 KB a picture 50 MB a rank


class HeldOutPhotos:
    """The first `KEPT` of some undecoded photographs that can be read, looked for when they are wanted."""

    def __init__(self, samples: PhotoSamples, raws: Iterable[dict[str, Any]]) -> None:
        self.samples = samples
        self._found: list[dict[str, Any]] = []
        self._more = islice(filter(self._readable, raws), KEPT)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._found
        for raw in self._more:
            self._found.append(raw)
            yield raw

    def batches(self, batch_size: int, rank: int = 0, world: int = 1) -> "Batches":
        """A rank's batches, as many for every rank; what makes no whole batch is left out."""
        raws = list(self)
        batch_size = min(batch_size, len(raws) // world)
        count = len(raws) // (batch_size * world) if batch_size else 0
        rows = raws[rank : count * batch_size * world : world]
        return Batches(self.samples, [rows[b * batch_size : (b + 1) * batch_size] for b in range(count)])

    def swaps(self, count: int) -> dict[str, Any] | None:
        """True swaps: the shape reference is one photograph as it is, the appearance reference that of another object.

        A batch like those of training, without targets, since no photograph shows what is to be painted; the prompt is
        out of the shape reference's caption. None where fewer than two objects are held out.
        """
        samples, first = self.samples, {}  # one photograph of each object
        for raw in self:
            first.setdefault(thing_of(raw), raw)
            if len(first) == count:
                break
        if len(first) < 2:
            return None
        raws, items = list(first.values()), []
        for shape, appearance in zip(raws, [*raws[1:], raws[0]], strict=True):
            sample, picture = samples.read(shape, samples.reference_size, samples.reference_size)
            references = dict(zip(ATTRIBUTES, (floats(picture), samples.whole(appearance)), strict=True))
            rng = np.random.default_rng([samples.seed, number_of(shape["__key__"])])
            prompt = photo_prompt(sample[schema.META], prompts.BOTH, rng)
            key = f"{shape['__key__']} in {appearance['__key__']}"
            items.append({"target": picture, "references": references, "prompt": prompt, "key": key})
        return {name: value for name, value in collate(items).items() if name not in TARGET}

    def _readable(self, raw: dict[str, Any]) -> bool:
        try:
            self.samples.read(raw, 1, 1)
        except UserError:
            return False
        return True


class Batches(Sequence):
    """Validation batches by number, drawn as in epoch 0."""

    def __init__(self, samples: PhotoSamples, rows: list[list[dict[str, Any]]]) -> None:
        self.samples, self.rows = samples, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return collate([self.samples(raw, 0) for raw in self.rows[number]])
