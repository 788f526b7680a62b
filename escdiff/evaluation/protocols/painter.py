"""Concepts of the subjects, by the encoder or from files, and the pictures of their cases."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler
from PIL import Image

from escdiff.backbone import Backbone, mini_folder
from escdiff.backbone.adapters.attached import applied
from escdiff.backbone.presets import load_preset
from escdiff.concept import Concept
from escdiff.concept.mixing import split
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.checkpoint import bundled_folder
from escdiff.evaluation.bench.models import fingerprint
from escdiff.evaluation.protocols.cases import FIRST, SECOND, Case
from escdiff.evaluation.protocols.subjects import Subject
from escdiff.methods.base import CONCEPT
from escdiff.pipelines.generate import generate, stack
from escdiff.support.errors import UserError


@dataclass(eq=False)
class Painter:
    """The backbone and where its concepts come from.

    Attributes:
        encoder: reads them from references; None where `concepts`, a folder, holds them as `{subject}.safetensors`,
            `{subject}/concept.safetensors` or `{subject}/export/concept.safetensors`.
        fingerprint: changes when weights do.
    """

    backbone: Backbone
    encoder: ConceptEncoder | None = None
    concepts: Path | None = None
    steps: int = 50
    guidance: float = 7.5
    batch_size: int = 4
    fingerprint: str = ""

    @classmethod
    def load(
        cls, backbone: str, encoder: Path | None, concepts: Path | None, steps: int, guidance: float | None,
        batch_size: int, device: str,
    ) -> "Painter":  # fmt: skip
        """Load by a name of `configs/backbone`, a folder or a hub id; with DDIM, whatever sampler it came with.

        Raises:
            UserError: something is missing or does not fit.
        """
        model, scale = load_preset(backbone, device, guidance=guidance)
        model.scheduler = DDIMScheduler.from_config(model.scheduler.config)
        reader = None if concepts else ConceptEncoder.from_pretrained(encoder, model).to(device)
        home = mini_folder() if model.name == "mini" else Path(model.name).expanduser()
        weights = fingerprint(model.name, model.text_hash, home, concepts or encoder or bundled_folder())
        return cls(model, reader, concepts, steps, scale, batch_size, weights)

    def concept(self, subject: Subject, reference: Image.Image) -> tuple[Concept, Path, float]:
        """The subject's concept, the folder its weights would lie in, and the seconds it took.

        Raises:
            UserError: its file is missing or does not fit.
        """
        if self.concepts is None:
            start = time.perf_counter()
            concept = self.encoder.encode(reference, note=subject.name)
            return concept, Path(), time.perf_counter() - start
        inside = (f"{subject.name}.safetensors", f"{subject.name}/{CONCEPT}", f"{subject.name}/export/{CONCEPT}")
        path = next((p for name in inside if (p := self.concepts / name).is_file()), None)
        if path is None:
            raise UserError(f"no concept of {subject.name} in {self.concepts}; put one at {inside[0]} or {inside[1]}")
        concept = Concept.load(path)
        return split(concept), path.parent, float(concept.notes.get("seconds", "nan"))

    def paint(
        self, cases: Sequence[Case], concepts: Mapping[str, tuple[Concept, Path]],
        done: Callable[[int, Image.Image], Any],
    ) -> None:  # fmt: skip
        """Paint the cases in batches; `done` is called with each one's number and picture as soon as it is there."""
        for first in range(0, len(cases), self.batch_size):
            part = cases[first : first + self.batch_size]
            used = list(dict.fromkeys(name for case in part for name in case.names))
            with applied(self.backbone, [concepts[n][0] for n in used], [concepts[n][1] for n in used]):
                vectors, space = self._vectors_of(part, concepts)
                pictures = generate(
                    self.backbone, [case.prompt for case in part], vectors, space, steps=self.steps,
                    guidance=self.guidance, seeds=[case.seed for case in part], batch_size=self.batch_size,
                )  # fmt: skip
            for i, picture in enumerate(pictures):
                done(first + i, picture)

    def _vectors_of(self, cases: Sequence[Case], concepts: Mapping[str, tuple[Concept, Path]]):
        """Concept and space as `generate` takes them: one per case, or the vectors of pairs."""
        if not cases[0].second:
            return [_of(case, concepts) for case in cases], None
        pair = {name: [concepts[getattr(case, name)][0] for case in cases] for name in (FIRST, SECOND)}
        if any(concept.extras for part in pair.values() for concept in part):
            raise UserError(
                "these concepts hold image tokens beside words, and two of them do not fit into one picture"
            )
        if any(concept.fused for part in pair.values() for concept in part):
            raise UserError(
                "these concepts are fused behind the text encoder; paint two of them with infer.py concept="
            )
        vectors = {key: v for name, part in pair.items() for key, v in stack(part, self.backbone, name).items()}
        return vectors, pair[FIRST][0].space


def _of(case: Case, concepts: Mapping[str, tuple[Concept, Path]]) -> Concept:
    if case.swapped:
        return Concept.combine(shape=concepts[case.shape][0], appearance=concepts[case.appearance][0])
    return concepts[case.subject][0]
