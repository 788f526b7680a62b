"""The comparison's requests: R references, several pictures of each, the same for every contender."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from escdiff.concept import ATTRIBUTES, WHOLE, Concept, placeholder
from escdiff.concept.mixing import mix, split
from escdiff.evaluation.bench.instances import Request, draw_instance, stream
from escdiff.evaluation.bench.requests import appearance_of, both_of, shape_of, swap_of
from escdiff.mini.world.world import Factors

STREAM = 1000
TASKS = ("both", "shape", "appearance", "swap")


@dataclass(frozen=True)
class Case:
    """One picture: a request of ESC-Bench, and the numbers of the references whose concepts it needs."""

    request: Request
    references: tuple[int, ...]


def draw_references(seed: int, count: int) -> list[Factors]:
    """Unseen instances; more of them begin with the same ones."""
    rng = stream(seed, STREAM)
    return [draw_instance(rng) for _ in range(count)]


def draw_cases(task: str, references: Sequence[Factors], per_reference: int, seed: int) -> list[Case]:
    """Draw `per_reference` requests for each reference, in the words of ESC-Bench, reference by reference."""
    drawn = []
    for i in range(len(references)):
        rng = stream(seed, STREAM + 1 + TASKS.index(task) + len(TASKS) * (i + 1))
        for _ in range(per_reference):
            drawn.append(_case(task, references, i, rng))
    return drawn


def _case(task: str, references: Sequence[Factors], i: int, rng) -> Case:
    if task == "swap":
        j = (i + 1) % len(references)
        return Case(swap_of(references[i], references[j], rng), (i, j))
    of = {"both": both_of, "shape": shape_of, "appearance": appearance_of}[task]
    return Case(of(references[i], rng), (i,))


def in_their_words(
    task: str, prompt: str, concepts: Sequence[Concept], gates: Mapping[str, Tensor] | None = None
) -> tuple[str, Concept]:
    """A request as a method can answer it: the prompt with its placeholders, and the concept that they stand for.

    Methods with shape and appearance of their own take the prompt as it is. Others are split by hand, or by gates where
    they are given, or mixed in one placeholder, as P+ does.
    """
    division = "gates" if gates else "hand"
    concept = concepts[0] if len(concepts) == 1 else mix(*concepts, division, gates)
    if set(ATTRIBUTES) <= set(concept.attributes) and WHOLE not in concept.attributes:
        return prompt, concept
    whole = placeholder(WHOLE)
    if task == "both":
        return prompt.replace(f"of {whole}", f"of a {whole}"), concept
    if task == "swap":
        return prompt.replace("<appearance> <shape>", whole), concept
    return prompt, split(concept, division, gates)
