"""What the page does, without the page: pictures to concepts, concepts to pictures step by step."""

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import ATTRIBUTES, WHOLE, Concept, placeholder, plain_prompt
from escdiff.conditioning import ConditioningSpace
from escdiff.data.images import decode_image, read_file, to_pil
from escdiff.encoder import ConceptEncoder
from escdiff.errors import UserError
from escdiff.figure import picture_grid
from escdiff.mixing import regate, split
from escdiff.pipeline import generate

MAX_BYTES, MAX_PIXELS = 10_000_000, 25_000_000  # of an uploaded file, of a picture
MAX_CONCEPT_BYTES = 4_000_000
MAX_PROMPT, MAX_STEPS, MAX_SEED = 400, 100, 2**31 - 1
MAX_MATRIX = 5  # pictures a side
PREVIEWS = 8


class _Stop(Exception):
    """Nobody waits for the picture any more."""


@dataclass(eq=False)
class Studio:
    """The models, and one painter at a time: the U-Net is shared."""

    backbone: Backbone
    encoder: ConceptEncoder
    guidance: float = 3.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def space(self) -> ConditioningSpace:
        return self.encoder.space

    def gates(self) -> dict[str, list[float]]:
        """Attribute -> a number per layer, where its sliders start (mean over stages)."""
        return {a: [round(v, 2) for v in gate.detach().mean(1).tolist()] for a, gate in self.encoder.gates().items()}

    def read(self, path: str) -> Concept:
        """The concept of an uploaded picture.

        Raises:
            UserError: it is too large, or no picture.
        """
        picture = decode_image(read_file(Path(path), MAX_BYTES), "upload", MAX_PIXELS)
        with self.lock:
            return self.encoder.encode(picture)

    def load(self, path: str) -> Concept:
        """An uploaded concept file, checked against the backbone.

        Raises:
            UserError: it is too large, damaged, or for another backbone.
        """
        if Path(path).stat().st_size > MAX_CONCEPT_BYTES:
            raise UserError(f"the concept file has more than {MAX_CONCEPT_BYTES / 1e6:g} MB; give one of this program")
        try:
            concept = Concept.load(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), "the file you gave")) from None
        concept.check_fits(self.space, self.backbone.width, self.backbone.text_hash)
        return split(concept)

    def compose(
        self, shape: str | None, appearance: str | None, kept: Concept | None, strength: Mapping[str, float],
        layers: Mapping[str, Sequence[float]],
    ) -> Concept:  # fmt: skip
        """The concept of what was given: pictures first, a loaded concept for what they leave open.

        Args:
            strength: of each attribute. layers: attribute -> gate per layer.

        Raises:
            UserError: nothing was given, or something that cannot be used.
        """
        given = {a: path for a, path in zip(ATTRIBUTES, (shape, appearance), strict=True) if path}
        sources = {path: self.read(path) for path in dict.fromkeys(given.values())}
        parts = {a: sources[path] for a, path in given.items()}
        for attribute in kept.attributes if kept else ():
            if attribute in ATTRIBUTES:
                parts.setdefault(attribute, kept)
        if not parts:
            raise UserError("nothing was given; drop a picture for the shape or the appearance, or load a concept")
        concept = Concept.combine(**{a: parts[a] for a in ATTRIBUTES if a in parts})
        concept = regate(concept, {a: _moved(gate, layers[a]) for a, gate in concept.gates.items() if a in layers})
        return concept.scaled({a: strength[a] for a in concept.attributes})

    def paint(
        self, concept: Concept, prompt: str, seed: int = 0, steps: int = 20, guidance: float | None = None
    ) -> Iterator[tuple[int, Image.Image]]:
        """(step, picture so far), the last one finished. Stops painting when nobody asks for more.

        Raises:
            UserError: a prompt that is too long or has no place for the concept; numbers out of range.
        """
        prompt = check_prompt(prompt, concept)
        seed, steps = _number("seed", seed, 0, MAX_SEED), _number("steps", steps, 1, MAX_STEPS)
        guidance = self.guidance if guidance is None else guidance
        if not (isinstance(guidance, int | float) and math.isfinite(guidance) and 0 <= guidance <= 30):
            raise UserError(f"guidance {guidance} given; expected a number from 0 to 30")
        shown: queue.Queue = queue.Queue()
        gone, every = threading.Event(), max(1, steps // PREVIEWS)

        def watch(step: int, latents: Tensor) -> None:
            if gone.is_set():
                raise _Stop
            if (step + 1) % every == 0 and step + 1 < steps:
                with torch.no_grad():
                    shown.put((step + 1, to_pil(self.backbone.decode(latents[:1])[0])))

        def work() -> None:
            try:
                with self.lock:
                    made = generate(
                        self.backbone, [prompt], concept, steps=steps, guidance=float(guidance), seeds=[seed],
                        watch=watch,
                    )  # fmt: skip
                shown.put((steps, made[0]))
            except BaseException as error:  # goes to the one who waits
                shown.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                found = shown.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if found[0] == steps:
                    return
        finally:
            gone.set()

    def matrix(self, paths: Sequence[str], prompt: str = "", seed: int = 0, steps: int = 12) -> Iterator[Image.Image]:
        """Every shape (down) in every appearance (across), row by row.

        Raises:
            UserError: too few or too many pictures.
        """
        if not 2 <= len(paths) <= MAX_MATRIX:
            raise UserError(f"{len(paths)} pictures given; expected 2 to {MAX_MATRIX}")
        seed, steps = _number("seed", seed, 0, MAX_SEED), _number("steps", steps, 1, MAX_STEPS)
        pictures = [decode_image(read_file(Path(path), MAX_BYTES), "upload", MAX_PIXELS) for path in paths]
        with self.lock:
            concepts = [self.encoder.encode(picture) for picture in pictures]
        heads = [picture.copy() for picture in pictures]
        rows: list[list[Image.Image | None]] = []
        for i, shape in enumerate(concepts):
            mixed = [Concept.combine(shape=shape, appearance=other) for other in concepts]
            said = check_prompt(prompt, mixed[0])
            with self.lock:
                made = generate(
                    self.backbone, [said] * len(mixed), mixed, steps=steps, guidance=self.guidance,
                    seeds=[seed] * len(mixed),
                )  # fmt: skip
            rows.append([heads[i], *made])
            empty = [[heads[j], *[None] * len(paths)] for j in range(i + 1, len(paths))]
            yield picture_grid([[None, *heads], *rows, *empty])


def check_prompt(prompt: str, concept: Concept) -> str:
    """The prompt, or a plain one for an empty one.

    Raises:
        UserError: it is too long, or has no place for the concept.
    """
    prompt = (prompt or "").strip()
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(prompt)} letters; the most is {MAX_PROMPT}")
    prompt = prompt or plain_prompt(concept.attributes)
    words = [placeholder(name) for name in concept.attributes]
    words += [placeholder(WHOLE)] * (len(words) > 1)
    if not any(word in prompt for word in words):
        raise UserError(f"the prompt has no place for the concept; write {' or '.join(words)} where it belongs")
    return prompt


def _moved(gate: Tensor, sliders: Sequence[float]) -> Tensor:
    """Gates (L, S) as the sliders (L) have them; one that was not moved keeps the exact number behind it."""
    given = torch.tensor(sliders, dtype=gate.dtype)[:, None].expand_as(gate)
    if not (torch.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
        raise UserError("a layer's gate is out of range; expected numbers from 0 to 1")
    return torch.where((given - gate.mean(1, keepdim=True)).abs() <= 0.0051, gate, given)


def _number(name: str, value, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not low <= value <= high:
        raise UserError(f"{name} {value} given; expected a whole number from {low} to {high}")
    return int(value)
