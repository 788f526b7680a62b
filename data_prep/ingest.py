"""`ingest`: pictures of any origin as shards that training reads.

Every picture is decoded once, in full. One that everybody reads alike (RGB, upright, one frame, no
transparency) keeps its bytes; any other is written anew and its json says what it was. Transparency becomes a
mask.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from data_prep.dataset import Job, LeftOut, Reject, Run, each_sample, make_dataset
from data_prep.guard import Guard
from data_prep.sources import Plan
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.limits import Limits
from escdiff.data.pictures import Picture, decode_picture, read_file
from escdiff.data.shards import encode_jpeg, encode_json, encode_png
from escdiff.support.errors import UserError

FORMAT = 2  # raise when the same options would give other bytes
TEXTS = ("caption", "category", "licence", "source", "object")


@dataclass(frozen=True)
class Ingest:
    """The stage and its options; `max_side` and `min_side` in pixels, 0 for no limit."""

    limits: Limits = field(default_factory=Limits)
    max_side: int = 1024
    min_side: int = 32
    licence: str = "unknown"
    name: str = "ingest"

    def options(self) -> dict[str, Any]:
        """See `Stage`."""
        limits = asdict(self.limits)
        limits.pop("seconds")  # belongs to the machine, not to the data
        return {"format": FORMAT, **limits, **{k: getattr(self, k) for k in ("max_side", "min_side", "licence")}}

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """See `Stage`."""
        yield from each_sample(job.source.candidates(), guard, self.convert)

    def convert(self, candidate: dict[str, Any]) -> dict[str, Any]:
        """A candidate of `data_prep.sources` as a sample of bytes.

        Raises:
            UserError: its picture or mask cannot be used.
        """
        name, limits = candidate["__source__"], self.limits
        data = _bytes(candidate["data"], name, limits)
        picture = decode_picture(data, name, limits.max_pixels)
        if min(picture.rgb.size) < self.min_side:
            size = "x".join(map(str, picture.rgb.size))
            raise LeftOut(f"the picture has {size} pixels, its smaller side below the limit of {self.min_side}")
        image = _shrunk(picture.rgb, self.max_side)
        if image is picture.rgb and picture.plain and picture.format in ("JPEG", "PNG"):
            kind = {"JPEG": "jpg", "PNG": "png"}[picture.format]
        else:
            kind = "jpg" if picture.format in ("JPEG", "MPO") else "png"
            data = encode_jpeg(image) if kind == "jpg" else encode_png(image)
        mask, origin = _mask(candidate.get("mask"), picture, name, limits)
        meta = {**self.facts(candidate["meta"]), "original": _original(picture)}
        sample = {"__key__": candidate["__key__"], kind: data}
        if mask is not None:
            meta["mask"] = origin
            sample[schema.MASK] = encode_png(mask.resize(image.size, Image.Resampling.BILINEAR))
        return {**sample, schema.META: encode_json(meta)}

    def facts(self, meta: dict[str, Any]) -> dict[str, Any]:
        """The known facts with those that every sample has; texts are texts."""
        if "licence" not in meta and "license" in meta:
            meta = {**meta, "licence": meta["license"]}
        filled = {"caption": "", "licence": self.licence, **{k: v for k, v in meta.items() if v is not None}}
        return {k: str(v) if k in TEXTS else v for k, v in filled.items()}


def ingest(plan: Plan, out: Path, stage: Ingest, run: Run) -> Index:
    """Make the dataset of a plan.

    Raises:
        UserError: as `make_dataset`.
    """
    for remark in plan.remarks:
        typer.echo(remark, err=True)
    return make_dataset(stage, out, plan.jobs, run, {"input": plan.fingerprint})


def _bytes(data: bytes | Path | None, name: str, limits: Limits) -> bytes:
    if data is None:
        raise UserError(f"sample {name} has no picture; give one in a format that is read")
    if isinstance(data, Path):
        return read_file(data, limits.max_bytes)
    if len(data) > limits.max_bytes:
        size = f"{len(data) / 1e6:.0f} MB, more than the limit of {limits.max_bytes / 1e6:g} MB"
        raise UserError(f"the image {name} has {size}; make it smaller")
    return data


def _shrunk(image: Image.Image, max_side: int) -> Image.Image:
    if not max_side or max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    size = tuple(max(round(side * scale), 1) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def _mask(source: bytes | Path | None, picture: Picture, name: str, limits: Limits):
    """(mask in mode L, where it is from), or (None, "")."""
    if source is None:
        return picture.alpha, "alpha"
    mask = decode_picture(_bytes(source, f"mask of {name}", limits), f"mask of {name}", limits.max_pixels).rgb
    ratios = [a / b for a, b in zip(mask.size, picture.rgb.size, strict=True)]
    if max(ratios) > 1.02 * min(ratios):
        sizes = " and ".join(f"{w}x{h}" for w, h in (mask.size, picture.rgb.size))
        raise UserError(f"mask and picture of {name} have other proportions ({sizes}); give a mask of this picture")
    return mask.convert("L"), "given"


def _original(picture: Picture) -> dict[str, Any]:
    """Facts about the original file that its pixels do not show."""
    facts: dict[str, Any] = {"format": picture.format, "mode": picture.mode, "size": list(picture.rgb.size)}
    if picture.frames > 1:
        facts["frames"] = picture.frames
    facts |= {name: True for name in ("turned", "profiled") if getattr(picture, name)}
    return facts
