"""`inspect`: what is in a dataset: counts, sizes, broken pictures, captions, licences, colours; one HTML page."""

import base64
import io
import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image, ImageOps
from skimage.color import rgb2hsv

from data_prep.dataset import QUARANTINE, WORK, Job, Run, clear_killed, clear_work, dataset_jobs, map_jobs, read_input
from data_prep.guard import Guard
from data_prep.page import write_page
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.pictures import expand
from escdiff.data.shards import decode
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic

FOLDER, PAGE, DATA = "inspect", "inspect.html", "inspect.json"
THUMBS, SIDE = 60, 96  # pictures on the contact sheet, and their side in pixels
HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
HUE_BOUNDS = (0.03, 0.11, 0.19, 0.45, 0.54, 0.70, 0.80, 0.95)  # upper ends, of the circle; red is on both sides


def inspect(folder: Path, run: Run) -> dict[str, Any] | None:
    """Look at every sample of a dataset and write inspect.html and inspect.json beside its shards.

    Returns the counts, or None after a dry run.

    Raises:
        UserError: there is no finished dataset.
    """
    folder = expand(folder)
    index, jobs = dataset_jobs(folder)
    work = folder / WORK / f"{FOLDER}-{index.fingerprint()}"
    if not run.dry:
        work.mkdir(parents=True, exist_ok=True)
        clear_killed(folder)
    per_shard = -(-THUMBS // len(jobs))
    look = partial(look_at_shard, work, per_shard, run.seconds, run.alone)
    map_jobs("inspect", look, jobs, lambda job: (work / f"{job.name}.json").is_file(), run)
    if run.dry:
        return None
    parts = [json.loads((work / f"{job.name}.json").read_text(encoding="utf-8")) for job in jobs]
    merged = merge(parts)
    summary = {**_facts(folder, index), **{k: v for k, v in merged.items() if k != "thumbs"}}
    write_atomic(folder / DATA, json.dumps(summary, indent=1, sort_keys=True).encode())
    write_page(folder / PAGE, folder.name, summary, merged["thumbs"][:: max(len(merged["thumbs"]) // THUMBS, 1)])
    clear_work(folder, f"{FOLDER}-*")  # also of data that were other ones
    samples, broken = summary["samples"], len(summary["broken"])
    typer.echo(f"inspect: {samples} samples, {broken} of them broken: {folder / PAGE}")
    return summary


def look_at_shard(work: Path, thumbs: int, seconds: float, alone: bool, job: Job) -> None:
    """Count one shard's samples into a json file."""
    counts: dict[str, Counter] = {name: Counter() for name in COUNTED}
    report: dict[str, Any] = {"seen": 0, "broken": [], "thumbs": []}
    guard = Guard(None, job.name, seconds, alone)
    every = max(job.samples // thumbs, 1)
    for number, raw in enumerate(read_input(job.source)):
        report["seen"] += 1
        try:
            with guard.sample(raw["__key__"]):
                entries = {k: v for k, v in raw.items() if k.startswith("__") or k in WANTED}
                sample = decode(entries)
                schema.validate(sample)
                picture = sample[schema.image_key(sample)]
                for name, value in measure(sample, picture).items():
                    counts[name].update(value if isinstance(value, list) else [value])
                if number % every == 0 and len(report["thumbs"]) < thumbs:
                    report["thumbs"].append([raw["__key__"], _thumb(picture, sample), sample[schema.META]["caption"]])
        except UserError as error:
            report["broken"].append([raw["__key__"], str(error)])
    write_atomic(work / f"{job.name}.json", json.dumps({**report, **counts}).encode())


WANTED = (*schema.IMAGES, schema.META, schema.MASK)
COUNTED = ("side", "aspect", "format", "words", "licence", "category", "mask", "brightness", "saturation", "hue")


def measure(sample: dict[str, Any], picture: Image.Image) -> dict[str, Any]:
    """The values of one sample that are counted, as names of bins."""
    meta = sample[schema.META]
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX)) / 255
    hue, saturation, value = np.moveaxis(rgb2hsv(small), -1, 0)
    colourful = (saturation > 0.25) & (value > 0.15)
    mask = sample.get(schema.MASK)
    share = None if mask is None else float((np.asarray(mask) > 127).mean())
    return {
        "side": _bin(min(picture.size), (64, 128, 256, 384, 512, 768, 1024, 2048)),
        "aspect": _bin(picture.width / picture.height, (0.5, 0.67, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0)),
        "format": str(meta.get("original", {}).get("format", schema.image_key(sample))),
        "words": _bin(len(meta["caption"].split()), (1, 4, 8, 16, 32, 64)),
        "licence": str(meta["licence"])[:80], "category": str(meta.get("category", "none"))[:80],
        "mask": "none" if share is None else _bin(share, (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)),
        "brightness": _bin(float(value.mean()), (0.1, 0.25, 0.4, 0.6, 0.75, 0.9)),
        "saturation": _bin(float(saturation.mean()), (0.05, 0.15, 0.3, 0.5, 0.7)),
        "hue": _hue(hue[colourful]) if colourful.mean() > 0.05 else "grey",
    }  # fmt: skip


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Shards' counts as one."""
    merged: dict[str, Any] = {name: Counter() for name in COUNTED}
    for part in parts:
        for name in COUNTED:
            merged[name].update(part[name])
    lists = {name: [item for part in parts for item in part[name]] for name in ("broken", "thumbs")}
    return {**{name: dict(c.most_common(40)) for name, c in merged.items()}, **lists}


def _facts(folder: Path, index: Index) -> dict[str, Any]:
    kinds = Counter()
    for file in (folder / QUARANTINE).glob("*.jsonl"):
        kinds.update(json.loads(line)["kind"] for line in file.read_text(encoding="utf-8").splitlines())
    return {
        "samples": index.samples, "shards": len(index.shards), "bytes": sum(s.bytes for s in index.shards),
        QUARANTINE: dict(kinds), "options": index.options,
    }  # fmt: skip


def _bin(value: float, bounds: tuple[float, ...]) -> str:
    i = next((i for i, bound in enumerate(bounds) if value < bound), len(bounds))
    low, high = (bounds[i - 1] if i else -math.inf), (bounds[i] if i < len(bounds) else math.inf)
    if low == -math.inf:
        return f"under {high:g}"
    return f"from {low:g}" if high == math.inf else f"{low:g} to {high:g}"


def _hue(hues: np.ndarray) -> str:
    numbers = np.searchsorted(HUE_BOUNDS, hues, side="right") % len(HUES)
    return HUES[int(np.bincount(numbers).argmax())]


def _thumb(picture: Image.Image, sample: dict[str, Any]) -> str:
    """A small JPEG in base64; what a mask leaves out is paled."""
    small = ImageOps.contain(picture, (SIDE, SIDE))
    if (mask := sample.get(schema.MASK)) is not None:
        pale = Image.blend(small, Image.new("RGB", small.size, (255, 255, 255)), 0.6)
        small = Image.composite(small, pale, mask.convert("L").resize(small.size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
