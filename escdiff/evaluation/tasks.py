"""The tasks of ESC-Bench: what each asks for, how its pictures are made, what is scored."""

from collections.abc import Callable
from dataclasses import dataclass

from escdiff.evaluation import requests
from escdiff.evaluation.references import Request

PAINT, RENDER, RECONSTRUCT, DERIVE = "paint", "render", "reconstruct", "derive"
WORDS = ("family", "pattern", "color", "color2", "finish", "background")
VALUES = ("params", "delta_e", "gloss")
CONCEPT = ("family", "pattern", "color", "background", "delta_e", "gloss", "params")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        about: one sentence for the report.
        draw: (seed, number of pictures) -> requests; empty for tasks that judge the pictures of others.
        scores: names of `scores.score`.
        make: how a picture comes from its request: painted by the model, rendered, rendered and sent through the
            VAE; or derived from the pictures of `needs`.
        number: pictures with --quick and without.
        clip: "clip_t" or "clip_i", a second opinion by CLIP.
        concept: whether its pictures need the concept encoder.
    """

    about: str
    draw: Callable[[int, int], list[Request]] | None = None
    scores: tuple[str, ...] = ()
    make: str = PAINT
    number: tuple[int, int] = (0, 0)
    needs: tuple[str, ...] = ()
    clip: str = ""
    concept: bool = False

    @property
    def needs_encoder(self) -> bool:
        """Whether its figures depend on the concept encoder."""
        return self.concept or any(TASKS[name].concept for name in self.needs)


TASKS = {
    "oracle": Task(
        "The oracle on fresh renders: its own error, beside which every other figure is to be read.",
        requests.fresh, (*WORDS, *VALUES, "appearance"), RENDER, (200, 1000),
    ),
    "vae": Task(
        "The renders of `oracle` through the VAE.",
        requests.fresh, ("family", "color", "pattern"), RECONSTRUCT, (200, 1000),
    ),
    "ceiling": Task(
        "The truth of task `both`, rendered and sent through the VAE: the best a model could do.",
        requests.ceiling, CONCEPT, RECONSTRUCT, (80, 400),
    ),
    "text": Task("Captions without any concept.", requests.text, (*WORDS, *VALUES), PAINT, (200, 500), clip="clip_t"),
    "both": Task(
        "One reference of an unseen instance, painted in another scene.",
        requests.both, CONCEPT, PAINT, (80, 400), clip="clip_i", concept=True,
    ),
    "held_out": Task(
        "As `both`, with families and patterns that the encoder's training never held.",
        requests.held_out, CONCEPT, PAINT, (60, 300), clip="clip_i", concept=True,
    ),
    "shape": Task(
        "The shape of the reference, a material in words; colours and pattern are the words', not the reference's.",
        requests.shape, ("family", "params", "color", "pattern", "background"), PAINT, (60, 300), concept=True,
    ),
    "appearance": Task(
        "The appearance of the reference, another family in words.",
        requests.appearance, ("color", "pattern", "delta_e", "family", "background"), PAINT, (60, 300), concept=True,
    ),
    "swap": Task(
        "Every shape in every appearance: shape is the family right, appearance pattern and colour both right.",
        requests.swap, ("shape", "appearance", "family", "color", "pattern"), PAINT, (64, 256), concept=True,
    ),
    "floor": Task(
        "What needs no concept: the captions of `both`; and (other_) the pictures of `both` against another instance.",
        requests.floor, ("family", "color", "pattern", "params", "delta_e"), PAINT, (60, 300), ("both",),
    ),
    "leak": Task(
        "How often the reference's colour shows though only its shape was given, and its family though only its "
        "appearance was; chance is another instance in the reference's place.",
        make=DERIVE, needs=("shape", "appearance"),
    ),
    "edit": Task(
        "Words beside a concept: another background (from `both`), a colour beside a shape, a family beside an "
        "appearance.",
        make=DERIVE, needs=("both", "shape", "appearance"),
    ),
    "copy": Task(
        "How often the picture of `both` is nearer to the pixels of its reference than 95 % of independent renders of "
        "the same object are.",
        make=DERIVE, needs=("both",),
    ),
}  # fmt: skip


def in_order(names: list[str]) -> list[str]:
    """The named tasks and those they need, the oracle always, in the order of `TASKS`."""
    wanted = {"oracle", *names}
    wanted |= {need for name in wanted for need in TASKS[name].needs}
    return [name for name in TASKS if name in wanted]
