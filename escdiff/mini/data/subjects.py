"""Scenes and faces whose things each have a reference of their own: what FastComposer and PortraitBooth learn from.

A reference shows the same instance alone, from another side, in another light and on another background; a face, with
another expression as well.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.backbone import Backbone
from escdiff.data.index import FILE, Index
from escdiff.data.latent_cache import vae_key
from escdiff.data.pictures import expand
from escdiff.data.prompts import SUBJECTS
from escdiff.mini.data.chunks import make_chunks, to_pixels
from escdiff.mini.world import scenes, world
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.edits import alone
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.scene_captions import subject_caption
from escdiff.mini.world.world import Factors
from escdiff.support.config.data import DataConfig
from escdiff.support.files import replacing, write_json
from escdiff.support.progress import sample_progress
from escdiff.training.loop.sample_order import EpochSampler

STREAM = {"scenes": 890_000, "faces": 895_000}  # of random numbers, apart from those of other data
PER_CHUNK = 64
ALONE = 0.25  # share of scenes of one thing
COUNT = {"scenes": len(SUBJECTS), "faces": 1}  # of the things with references, at most


def draw_subjects(kind: str, seed: int, number: int, split: str = "train") -> tuple[Arrangement, list[Arrangement]]:
    """Picture `number` of a seed and a reference of each of its first things.

    Args:
        kind: "scenes" or "faces". split: see `DataConfig.split`.
    """
    rng = np.random.default_rng((seed, STREAM[kind], number))
    while True:
        if kind == "faces":
            picture = scenes.sample_face(rng)
        else:
            picture = alone(rng) if rng.random() < ALONE else scenes.sample_arrangement(rng)
        if split == "test" or not any(world.held_out(thing.shape, thing.material) for thing in picture.things):
            return picture, [_elsewhere(thing, rng) for thing in picture.things[: COUNT[kind]]]


def _elsewhere(thing: Thing, rng: np.random.Generator) -> Arrangement:
    scene = world.sample_scene(rng, thing.material)
    if not thing.face:
        return Arrangement.of(Factors(thing.shape, thing.material, scene))
    other = scenes.sample_face(rng).with_thing(0, shape=thing.shape, material=thing.material)
    return replace(other, scene=scene)


class Subjects(Dataset):
    """Batches of up to N subjects; where a picture has fewer, what the others have is zero.

    "pixels" (B, 3, H, W) in [-1, 1] and, with latents, "latent" (B, 2C, h, w) moments; "prompt", with `SUBJECTS` where
    the things stand; "nouns", of every picture its things' words; "masks" (B, N, H, W), what is seen of each thing;
    "references" (B, N, 3, H, W) and "reference_masks" (B, N, 1, H, W).

    Args:
        latents: moments of all pictures.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path, seed: int = 0, latents: Tensor | None = None) -> None:
        files = sorted(folder.glob("subjects-*.npz"))
        parts = [np.load(file) for file in files]
        self.arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}
        texts = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in files]
        self.pictures = [Arrangement.from_dict(values) for chunk in texts for values in chunk]
        self.seed, self.latents = seed, latents

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, visits: list[tuple[int, int]]) -> dict[str, Any]:
        rows = [row for _, row in visits]
        shown = [self.pictures[row] for row in rows]
        rngs = [np.random.default_rng((self.seed, *visit)) for visit in visits]
        references = self.arrays["references"][rows]
        batch = {
            "pixels": to_pixels(self.arrays["picture"][rows]),
            "prompt": [subject_caption(picture, rng) for picture, rng in zip(shown, rngs, strict=True)],
            "nouns": [[thing.shape.family for thing in picture.things[: COUNT[self.kind]]] for picture in shown],
            "expressions": [picture.names.get("expression", "") for picture in shown],
            "references": to_pixels(references.reshape(-1, *references.shape[2:])).unflatten(0, references.shape[:2]),
            "masks": torch.from_numpy(self.arrays["masks"][rows]).float(),
            "reference_masks": torch.from_numpy(self.arrays["reference_masks"][rows])[:, :, None].float(),
        }
        return batch if self.latents is None else {**batch, "latent": self.latents[rows]}

    @classmethod
    def prepare(cls, data: DataConfig) -> None:
        """Render what is not there yet, unless the folder holds data of another kind."""
        root = expand(data.source)
        if (root / FILE).is_file() and Index.load(root, require_complete=False).name != "still_life":
            return
        folder = _folder(cls.kind, data)
        folder.mkdir(parents=True, exist_ok=True)
        chunks = range(-(-data.num_samples // PER_CHUNK))
        due = [chunk for chunk in chunks if not _file(folder, chunk).is_file()]
        make = partial(_render_chunk, folder, cls.kind, data.seed, data.size or 128, data.split)
        make_chunks(due, make, PER_CHUNK, cls.kind, data.render_workers)

    @classmethod
    def of_config(cls, data: DataConfig, seed: int, backbone: Backbone, device: str, *_: Any) -> DataLoader:
        """What was prepared, with latents of the backbone where `data.latents` asks for them."""
        folder = _folder(cls.kind, data)
        found = cls(folder, seed)
        if data.latents == "auto":
            found.latents = found.moments(backbone, folder / f"moments-{vae_key(backbone.vae, data.size or 128)}.npy")
        sampler = EpochSampler(len(found), data.batch_size, seed)
        return DataLoader(found, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def moments(self, backbone: Backbone, file: Path, batch_size: int = 32) -> Tensor:
        """(N, 2C, h, w) of all pictures, kept in a file."""
        if not file.is_file() or len(np.load(file, mmap_mode="r")) != len(self):
            parts = []
            with sample_progress("encoding", len(self)) as advance:
                for pixels in to_pixels(self.arrays["picture"]).split(batch_size):
                    parts.append(backbone.moments(pixels).float().cpu())
                    advance(len(pixels))
            with replacing(file) as out:
                np.save(out, torch.cat(parts).numpy())
        return torch.from_numpy(np.load(file))


class SceneSubjects(Subjects):
    """Scenes of one to three things."""

    kind = "scenes"


class FaceSubjects(Subjects):
    """Faces; "expressions" are their words."""

    kind = "faces"


def show(drawn: list[tuple[Arrangement, list[Arrangement]]], count: int, size: int = 128) -> dict[str, np.ndarray]:
    """Renders: "picture" (n, size, size, 3) uint8 and "masks" (n, N, size, size) bool; "references" and
    "reference_masks" of the same sizes for each of `count` things."""
    pictures = render([picture for picture, _ in drawn], size)
    others = render([one for _, own in drawn for one in own], size)
    found = {
        "picture": pictures.image, "masks": np.zeros((len(drawn), count, size, size), bool),
        "references": np.zeros((len(drawn), count, size, size, 3), np.uint8),
        "reference_masks": np.zeros((len(drawn), count, size, size), bool),
    }  # fmt: skip
    first = 0
    for row, (_, own) in enumerate(drawn):
        last = first + len(own)
        found["masks"][row, : len(own)] = pictures.visible[row][: len(own)]
        found["references"][row, : len(own)] = others.image[first:last]
        found["reference_masks"][row, : len(own)] = others.mask[first:last]
        first = last
    return found


def _render_chunk(folder: Path, kind: str, seed: int, size: int, split: str, chunk: int) -> None:
    numbers = range(chunk * PER_CHUNK, (chunk + 1) * PER_CHUNK)
    drawn = [draw_subjects(kind, seed, number, split) for number in numbers]
    file = _file(folder, chunk)
    write_json(file.with_suffix(".json"), [picture.to_dict() for picture, _ in drawn])
    with replacing(file) as out:  # last: it says that the chunk is whole
        np.savez(out, **show(drawn, COUNT[kind], size))


def _folder(kind: str, data: DataConfig) -> Path:
    return expand(data.source) / f"{kind}-{world.VERSION}-{data.seed}-{data.size or 128}-{data.split}"


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"subjects-{chunk:05d}.npz"
