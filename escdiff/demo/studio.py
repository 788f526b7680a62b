"""The page's work without its widgets: pictures to concepts, concepts to pictures step by step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.concept.mixing import regate, split
from escdiff.conditioning import ConditioningSpace
from escdiff.data.pictures import read_file
from escdiff.serving.engine import Engine
from escdiff.serving.jobs import MAX_PREVIEWS
from escdiff.support.errors import UserError
from escdiff.support.picture_grid import picture_grid

MAX_MATRIX = 5  # pictures a side


@dataclass(eq=False)
class Studio:
    """The page's work on one engine."""

    engine: Engine

    @property
    def space(self) -> ConditioningSpace:
        """The encoder's space."""
        return self.engine.encoder.space

    def gates(self) -> dict[str, list[float]]:
        """Attribute -> a number per layer, where its sliders start (mean over stages)."""
        return {
            a: [round(v, 2) for v in gate.detach().mean(1).tolist()] for a, gate in self.engine.encoder.gates().items()
        }

    def read_picture(self, path: str) -> Image.Image:
        """An uploaded picture.

        Raises:
            UserError: it is too large, or no picture.
        """
        return self.engine.read_picture(read_file(Path(path), self.engine.limits.picture_bytes))

    def load(self, path: str) -> Concept:
        """An uploaded concept file, with `shape` and `appearance` for one of a single placeholder.

        Raises:
            UserError: it is too large, damaged, or for another backbone.
        """
        return split(self.engine.read_concept(Path(path)))

    def compose(
        self, shape: str | None, appearance: str | None, loaded: Concept | None, strength: Mapping[str, float],
        layers: Mapping[str, Sequence[float]],
    ) -> Concept:  # fmt: skip
        """The concept of what was given: pictures first, a loaded concept for what they leave open.

        Args:
            strength: of each attribute. layers: attribute -> gate per layer.

        Raises:
            UserError: nothing was given, or something that cannot be used.
        """
        references = {a: path for a, path in zip(ATTRIBUTES, (shape, appearance), strict=True) if path}
        sources = {path: self.read_picture(path) for path in dict.fromkeys(references.values())}
        parts = {}
        if references:
            read = self.engine.encode({a: sources[path] for a, path in references.items()})
            parts = {a: read.only(a) for a in references}
        for attribute in loaded.attributes if loaded else ():
            if attribute in ATTRIBUTES:
                parts.setdefault(attribute, loaded)
        if not parts:
            raise UserError("nothing was given; drop a picture for the shape or the appearance, or load a concept")
        concept = Concept.combine(**{a: parts[a] for a in ATTRIBUTES if a in parts})
        concept = regate(concept, {a: _moved(gate, layers[a]) for a, gate in concept.gates.items() if a in layers})
        return concept.scaled({a: strength[a] for a in concept.attributes})

    def paint(
        self, concept: Concept, prompt: str, seed: int = 0, steps: int = 20, guidance: float | None = None
    ) -> Iterator[tuple[int, int, Image.Image]]:
        """(step, of how many, picture so far), the last one finished. Stops painting when nobody asks for more.

        Raises:
            UserError: a prompt that is too long or has no place for the concept; numbers out of range.
        """
        job = self.engine.job(
            prompt, {"": concept}, seed=seed, steps=steps, guidance=guidance, previews=MAX_PREVIEWS
        )  # fmt: skip
        for _, event in self.engine.paint(job):
            if isinstance(event, Image.Image):
                yield job.calls, job.calls, event
            elif event.preview is not None:
                yield event.step, event.total, event.preview

    def matrix(self, paths: Sequence[str], prompt: str = "", seed: int = 0, steps: int = 12) -> Iterator[Image.Image]:
        """Every shape (down) in every appearance (across), row by row.

        Raises:
            UserError: too few or too many pictures.
        """
        if not 2 <= len(paths) <= MAX_MATRIX:
            raise UserError(f"{len(paths)} pictures given; expected 2 to {MAX_MATRIX}")
        pictures = [self.read_picture(path) for path in paths]
        concepts = [self.engine.encode(dict.fromkeys(ATTRIBUTES, picture)) for picture in pictures]
        rows: list[list[Image.Image | None]] = []
        for i, shape in enumerate(concepts):
            mixed = [Concept.combine(shape=shape, appearance=other) for other in concepts]
            jobs = [self.engine.job(prompt, {"": concept}, seed=seed, steps=steps) for concept in mixed]
            painted = dict(self.engine.paint(*jobs))  # a job's picture is the last that is said of it
            rows.append([pictures[i], *(painted[j] for j in range(len(jobs)))])
            empty = [[pictures[j], *[None] * len(paths)] for j in range(i + 1, len(paths))]
            yield picture_grid([[None, *pictures], *rows, *empty])


def _moved(gate: Tensor, sliders: Sequence[float]) -> Tensor:
    """Gates (L, S) as the sliders (L) have them; one that was not moved keeps the exact number behind it."""
    moved = torch.tensor(sliders, dtype=gate.dtype)[:, None].expand_as(gate)
    if not (torch.isfinite(moved).all() and moved.min() >= 0 and moved.max() <= 1):
        raise UserError("a layer's gate is out of range; expected numbers from 0 to 1")
    return torch.where((moved - gate.mean(1, keepdim=True)).abs() <= 0.0051, gate, moved)
