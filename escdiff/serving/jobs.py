"""One picture that is to be painted, checked before it waits; and those that can be painted in one batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.backbone.branches import check_branches, is_routed
from escdiff.concept import Concept, plain_prompt
from escdiff.conditioning import ConditioningSpace
from escdiff.pipelines.generate import check_size, count_calls, generate
from escdiff.serving.limits import MAX_SEED, Limits
from escdiff.support.errors import UserError

MAX_GUIDANCE = 30.0
MAX_PREVIEWS = 8


@dataclass(frozen=True, eq=False)
class Job:
    """A checked request for one picture.

    Attributes:
        vectors: placeholder -> (1, L, S, K, D), see `Concept.placeholders`.
        calls: of the U-Net, see `count_calls`.
        height, width: pixels.
        previews: unfinished pictures to be shown on the way.
    """

    prompt: str
    vectors: Mapping[str, Tensor]
    space: ConditioningSpace
    seed: int
    steps: int
    calls: int
    guidance: float
    negative_prompt: str
    height: int
    width: int
    previews: int = 0

    @property
    def kind(self) -> tuple:
        """Equal for jobs that can be painted together."""
        shapes = tuple(sorted((word, tuple(value.shape)) for word, value in self.vectors.items()))
        return shapes, self.space, self.steps, self.guidance, self.negative_prompt, self.height, self.width


def make_job(
    backbone: Backbone, limits: Limits, prompt: str = "", concepts: Mapping[str, Concept] | None = None, seed: int = 0,
    steps: int = 20, guidance: float = 5.0, negative_prompt: str = "", height: int | None = None,
    width: int | None = None, previews: int = 0,
) -> Job:  # fmt: skip
    """Check what was asked for.

    Args:
        prompt: empty for a plain one of a concept without a name.
        concepts: by name, see `Concept.placeholders`; "" for one without.

    Raises:
        UserError: a text that is too long, or has no place for a concept or a word that no concept has; numbers out of
            range; a concept for another backbone, or one that brings weights along.
    """
    concepts = dict(concepts or {})
    prompt, negative_prompt = (prompt or "").strip(), (negative_prompt or "").strip()
    for text in (prompt, negative_prompt):
        if len(text) > limits.prompt:
            raise UserError(f"the prompt has {len(text)} letters; the most is {limits.prompt}")
    vectors, space = _vectors(backbone, concepts)
    if not prompt and "" in concepts:
        prompt = plain_prompt(concepts[""].attributes)
    for name, concept in concepts.items():
        words = concept.placeholders(name or None)
        if not any(word in prompt for word in words):
            raise UserError(f"the prompt has no place for the concept; write {' or '.join(words)} where it belongs")
    backbone.prompts.tokenize(prompt, {word: value.shape[3] for word, value in vectors.items()})
    if not (isinstance(guidance, int | float) and math.isfinite(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise UserError(f"guidance {guidance} given; expected a number from 0 to {MAX_GUIDANCE:g}")
    steps, default_side = whole("steps", steps, 1, limits.steps), backbone.picture_size
    sides = {"height": default_side if height is None else height, "width": default_side if width is None else width}
    sides = {name: whole(name, side, 1, limits.side or 2 * default_side) for name, side in sides.items()}
    check_size(backbone, **sides)
    return Job(
        prompt, vectors, space, whole("seed", seed, 0, MAX_SEED), steps, count_calls(backbone, steps), float(guidance),
        negative_prompt, **sides, previews=whole("previews", previews, 0, MAX_PREVIEWS),
    )  # fmt: skip


def paint_together(
    backbone: Backbone, jobs: Sequence[Job], watch: Callable[[int, Tensor], None] | None = None
) -> list[Image.Image]:
    """A picture per job, in one batch.

    Args:
        jobs: of one kind. watch: see `generate`.

    Raises:
        UserError: see `generate`.
    """
    first = jobs[0]
    vectors = {word: torch.cat([job.vectors[word] for job in jobs]) for word in first.vectors}
    return generate(
        backbone, [job.prompt for job in jobs], vectors, first.space, steps=first.steps, guidance=first.guidance,
        seeds=[job.seed for job in jobs], negative_prompt=first.negative_prompt, batch_size=len(jobs), watch=watch,
        height=first.height, width=first.width,
    )  # fmt: skip


def whole(name: str, value, low: int, high: int) -> int:
    """A whole number in a range.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value % 1:
        raise UserError(f"{name} {value} given; expected a whole number from {low} to {high}")
    return int(value)


def _vectors(backbone: Backbone, concepts: Mapping[str, Concept]) -> tuple[dict[str, Tensor], ConditioningSpace]:
    """All placeholders' vectors, and their space."""
    vectors, space = {}, backbone.p_plus()
    if len({concept.space for concept in concepts.values()}) > 1:
        raise UserError("the concepts have different spaces; expected those of one encoder or method")
    if any(concepts) and is_routed(backbone.unet):
        raise UserError("the encoder's branches act on <shape> and <appearance> only; leave the concepts' names out")
    for name, concept in concepts.items():
        check_concept(backbone, concept)
        words, space = concept.placeholders(name or None), concept.space
        if clashing := sorted(vectors.keys() & words.keys()):
            raise UserError(f"two concepts give {clashing[0]}; give them other names")
        vectors |= {word: value.float() for word, value in words.items()}
    return vectors, space


def check_concept(backbone: Backbone, concept: Concept) -> None:
    """Refuse a concept that the backbone cannot paint.

    Raises:
        UserError: it is for another one, needs branches that this one lacks, or brings weights along.
    """
    expected = backbone.p_plus()
    if set(concept.space.layer_names) == set(expected.layer_names):
        expected = concept.space  # any partition of these layers will do
    concept.check_fits(expected, backbone.width, backbone.text_hash)
    check_branches(backbone.unet, concept)
    if concept.extras or "adapter" in concept.notes:
        raise UserError("the concept brings weights of its own along, which are not taken here; use infer.py")
