"""The tasks of ESC-Bench: what each asks for, how its pictures are made, what is scored."""

from collections.abc import Callable
from dataclasses import dataclass

from escdiff.evaluation.bench import requests
from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.scenes import requests as scenes
from escdiff.evaluation.bench.scenes.requests import SceneRequest

PAINT, RENDER, RECONSTRUCT, DERIVE, SCENES = "paint", "render", "reconstruct", "derive", "scenes"
WORDS = ("family", "degrees", "pattern", "color", "color2", "finish", "background")
VALUES = ("params", "delta_e", "gloss", "scale", "angle")
IDENTITIES = ("shape_id", "material_id")
CONCEPT = ("family", "pattern", "color", "background", "degrees", "delta_e", "gloss", "params")


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        about: one sentence for the report.
        draw: (seed, number of pictures) -> requests; empty for tasks that judge the pictures of others.
        scores: names of `scores.score`.
        make: how a picture comes from its request: painted by the model, rendered, rendered and sent through the
            VAE; derived from the pictures of `needs`; or painted by what scenes need.
        number: pictures with --quick and without.
        identities: names of `identity.LOOKED_FOR`: which of 8 the picture shows.
        every: how many requests there are to one whose instance is looked for, since line-ups are rendered.
        nameless: whether only things and textures are looked for.
        agreements: whether the oracle's numbers are compared with the truth over all pictures.
        clip: "clip_t" or "clip_i", a second opinion by CLIP.
        concept: whether its pictures need the concept encoder.
        judged: whether it makes no sense without the scene oracle.
    """

    about: str
    draw: Callable[[int, int], list[Request] | list[SceneRequest]] | None = None
    scores: tuple[str, ...] = ()
    make: str = PAINT
    number: tuple[int, int] = (0, 0)
    needs: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    every: int = 1
    nameless: bool = False
    agreements: bool = False
    clip: str = ""
    concept: bool = False
    judged: bool = False

    @property
    def request(self) -> type:
        """The class of its requests."""
        return SceneRequest if self.make == SCENES else Request

    @property
    def needs_encoder(self) -> bool:
        """Whether its figures depend on the concept encoder."""
        return self.concept or any(TASKS[name].concept for name in self.needs)


TASKS = {
    "oracle": Task(
        "The oracle on fresh renders: its own error, beside which every other figure is to be read.",
        requests.fresh, (*WORDS, *VALUES, "appearance"), RENDER, (120, 1000), identities=IDENTITIES,
        every=4, agreements=True,
    ),
    "vae": Task(
        "The renders of `oracle` through the VAE.",
        requests.fresh, ("family", "color", "pattern", "params", "gloss"), RECONSTRUCT, (60, 1000),
        identities=IDENTITIES, every=4, agreements=True,
    ),
    "ceiling": Task(
        "The truth of task `both`, rendered and sent through the VAE: the best a model could do.",
        requests.ceiling, CONCEPT, RECONSTRUCT, (48, 400), identities=IDENTITIES,
    ),
    "text": Task("Captions without any concept.", requests.text, (*WORDS, *VALUES), PAINT, (64, 500), clip="clip_t"),
    "both": Task(
        "One reference of an unseen instance, painted in another scene.",
        requests.both, CONCEPT, PAINT, (48, 400), identities=IDENTITIES, clip="clip_i", concept=True,
    ),
    "held_out": Task(
        "As `both`, with families and patterns that the encoder's training never held.",
        requests.held_out, CONCEPT, PAINT, (32, 300), identities=IDENTITIES, clip="clip_i", concept=True,
    ),
    "shape": Task(
        "The shape of the reference, a material in words; colours and pattern are the words', not the reference's.",
        requests.shape, ("family", "degrees", "params", "color", "pattern", "background"), PAINT, (32, 300),
        identities=("shape_id", "leak_material_id"), concept=True,
    ),
    "appearance": Task(
        "The appearance of the reference, another family in words.",
        requests.appearance, ("color", "pattern", "delta_e", "family", "background"), PAINT, (32, 300),
        identities=("material_id", "leak_shape_id"), concept=True,
    ),
    "swap": Task(
        "Every shape in every appearance: shape is the family right, appearance pattern and colour both right.",
        requests.swap, ("shape", "appearance", "family", "color", "pattern"), PAINT, (36, 256),
        identities=IDENTITIES, concept=True,
    ),
    "nameless": Task(
        "As `both`, of things and textures without a name.",
        requests.nameless, ("background",), PAINT, (32, 300), identities=IDENTITIES, nameless=True, concept=True,
    ),
    "words_brief": Task(
        "The same instances as `both`, by what a person would type.",
        requests.words_brief, CONCEPT, PAINT, (48, 400), identities=IDENTITIES,
    ),
    "words_full": Task(
        "The same instances as `both`, by all that words can say.",
        requests.words_full, CONCEPT, PAINT, (48, 400), identities=IDENTITIES,
    ),
    "nameless_words": Task(
        "The instances of `nameless` by all that words can say: their colours and background.",
        requests.nameless_words, ("background",), PAINT, (32, 300), identities=IDENTITIES, nameless=True,
    ),
    "stranger": Task(
        "Another instance of the same names, rendered and sent through the VAE: what chance re-identifies.",
        requests.stranger, CONCEPT, RECONSTRUCT, (48, 400), identities=IDENTITIES,
    ),
    "swap_words": Task(
        "What `swap` asks for by all that words can say.",
        requests.swap_words, ("shape", "appearance"), PAINT, (36, 256), identities=IDENTITIES,
    ),
    "nameless_ceiling": Task(
        "The truth of task `nameless`, rendered and sent through the VAE.",
        requests.nameless_ceiling, ("background",), RECONSTRUCT, (32, 300), identities=IDENTITIES, nameless=True,
    ),
    "scene": Task(
        "Several things: two references in one picture (pair), words bound to their things (bind), one thing out of "
        "two by a mask (extract), relations in words (relation), things in given boxes (place).",
        scenes.scene, make=SCENES, number=(40, 500), concept=True, judged=True,
    ),
    "pose": Task(
        "The pose of one figure on another body in another material, which words give.",
        scenes.pose, make=SCENES, number=(12, 120), concept=True, judged=True,
    ),
    "identity": Task(
        "A face again, with another expression, which a word gives.",
        scenes.identity, make=SCENES, number=(12, 120), concept=True, judged=True,
    ),
    "edit_pair": Task(
        "Exact edits: from the picture before, by Plug-and-Play and words, to a picture after that is known.",
        scenes.edit_pair, make=SCENES, number=(6, 60),
    ),
    "floor": Task(
        "What needs no concept: the captions of `both`; and (other_) the pictures of `both` against another instance.",
        requests.floor, ("family", "color", "pattern", "params", "delta_e"), PAINT, (32, 300), ("both",),
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
    chosen = {"oracle", *names}
    chosen |= {need for name in chosen for need in TASKS[name].needs}
    return [name for name in TASKS if name in chosen]
