"""What the comparison asks for: R references, several pictures of each, the same for every contender."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from escdiff.concept import ATTRIBUTES, WHOLE, Concept, placeholder
from escdiff.evaluation.references import (
    Request,
    draw_instance,
    draw_material,
    draw_scene,
    draw_shape,
    in_new_scene,
    stream,
)
from escdiff.mixing import mix, split
from escdiff.still_life.captions import article, material_words
from escdiff.still_life.world import Factors

STREAM = 1000
TASKS = ("both", "shape", "appearance", "swap")


@dataclass(frozen=True)
class Ask:
    """One picture: a request of ESC-Bench, and the numbers of the references whose concepts it needs."""

    request: Request
    references: tuple[int, ...]


def draw_references(seed: int, count: int) -> list[Factors]:
    """Unseen instances; more of them begin with the same ones."""
    rng = stream(seed, STREAM)
    return [draw_instance(rng) for _ in range(count)]


def asks(task: str, references: Sequence[Factors], each: int, seed: int) -> list[Ask]:
    """`each` pictures of every reference, reference by reference, in the words of ESC-Bench."""
    found = []
    for i, reference in enumerate(references):
        rng = stream(seed, STREAM + 1 + TASKS.index(task) + len(TASKS) * (i + 1))
        for _ in range(each):
            found.append(_ask(task, references, i, reference, rng))
    return found


def _ask(task: str, references: Sequence[Factors], i: int, reference: Factors, rng) -> Ask:
    if task == "both":
        target = in_new_scene(reference, rng)
        return Ask(Request(f"a photo of <concept> {_on(target)}", target, reference, reference), (i,))
    if task == "shape":
        own = {reference.material.color, reference.material.color2}
        material = draw_material(rng, avoid=own)
        target = Factors(reference.shape, material, draw_scene(rng, material, reference.scene.background))
        words = {reference.material.color, material.color, material.color2}
        prompt = f"a photo of {article(material_words(material))} <shape> {_on(target)}"
        return Ask(Request(prompt, target, shape=reference, other=draw_instance(rng, avoid_colors=words)), (i,))
    if task == "appearance":
        target = replace(in_new_scene(reference, rng), shape=draw_shape(rng, avoid=(reference.shape.family,)))
        families = (reference.shape.family, target.shape.family)
        prompt = f"a photo of a <appearance> {target.shape.family} {_on(target)}"
        return Ask(
            Request(prompt, target, appearance=reference, other=draw_instance(rng, avoid_families=families)), (i,)
        )
    j = (i + 1) % len(references)
    other = references[j]
    target = Factors(reference.shape, other.material, draw_scene(rng, other.material))
    return Ask(Request(f"a photo of a <appearance> <shape> {_on(target)}", target, reference, other), (i, j))


def in_their_words(task: str, prompt: str, concepts: Sequence[Concept]) -> tuple[str, Concept]:
    """A request as a method can answer it: the prompt with its placeholders, and the concept that they stand for.

    Methods with shape and appearance of their own take the prompt as it is. Others are split by hand, or mixed in one
    placeholder, as P+ does.
    """
    concept = concepts[0] if len(concepts) == 1 else mix(*concepts)
    if set(ATTRIBUTES) <= set(concept.attributes) and WHOLE not in concept.attributes:
        return prompt, concept
    whole = placeholder(WHOLE)
    if task == "both":
        return prompt.replace(f"of {whole}", f"of a {whole}"), concept
    if task == "swap":
        return prompt.replace("<appearance> <shape>", whole), concept
    return prompt, split(concept)


def _on(factors: Factors) -> str:
    return f"on {article(factors.scene.background)} background"
