"""The terms of the encoder's loss, each under its name; the key `loss.NAME` is its weight.

A package adds a term as an entry point of the group `escdiff.losses`: a function of a `Step`.
Legend: B batch, F features, L layer cells, S stages, K vectors, D width, N = B x draws noised copies.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from escdiff.concept import ATTRIBUTES
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.methods import losses
from escdiff.support import extensions
from escdiff.support.config.loss import LossConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.word_targets import word_loss


@dataclass(frozen=True)
class Step:
    """What a training step knows; a term takes what it needs.

    Attributes:
        encoder: what learns. objective: weights, and shares of samples.
        batch: see `escdiff.mini.data.swaps.EncoderDataModule`.
        features: attribute -> (B, F) of the references, and "target_{attribute}" in steps with pairs.
        residuals: attribute -> (B, L, S, K, D), before the gates.
        kept: (B,) bool, samples with both attributes.
        words: phrases and K -> (B, K, D) of their words, and which of them count, (B,) bool.
        output, target: (N, C, h, w) of the U-Net; None in steps on words alone, which leave the U-Net out.
        timesteps: (N,), likewise.
    """

    encoder: ConceptEncoder
    objective: LossConfig
    batch: Mapping[str, Any]
    features: Mapping[str, Tensor]
    residuals: Mapping[str, Tensor]
    kept: Tensor
    words: Callable[[Sequence[str], int], tuple[Tensor, Tensor]]
    output: Tensor | None = None
    target: Tensor | None = None
    timesteps: Tensor | None = None


Term = Callable[[Step], Tensor | None]  # a number, or None where the step has nothing for it


def denoising(step: Step) -> Tensor | None:
    """The denoising error (arXiv 2112.10752, eq. 3)."""
    return None if step.output is None else losses.denoising(step.output, step.target)


def mask(step: Step) -> Tensor | None:
    """The denoising error within the object."""
    if step.output is None:
        return None
    within = step.batch["mask"].repeat_interleave(step.objective.draws, 0)
    return losses.denoising(step.output, step.target, mask=within)


def gates(step: Step) -> Tensor | None:
    """The mean gates. With no denoising to weigh against them, sparsity would close them all."""
    return None if step.output is None else sum(gate.mean() for gate in step.encoder.gates().values())


def residual(step: Step) -> Tensor:
    """The mean square of what is added to the anchor words, in units of a real word's norm."""
    scale = step.encoder.embedding_scale
    return sum(losses.residual_l2(value / scale) for value in step.residuals.values())


def invariance(step: Step) -> Tensor | None:
    """Of each head, between the reference and the target that shares its attribute."""
    if "target_shape" not in step.features:
        return None
    return sum(losses.invariance(step.features[a], step.features[f"target_{a}"]) for a in ATTRIBUTES)


def independence(step: Step) -> Tensor | None:
    """Of the two heads, on one picture."""
    if "target_shape" not in step.features:
        return None
    return losses.independence(step.features["target_shape"], step.features["target_appearance"])


def instances(step: Step) -> Tensor | None:
    """Contrast of each head's features: two pictures of one instance against those of all others in the batch."""
    if "target_shape" not in step.features or not step.objective.instances:
        return None
    total = 0.0
    for attribute in ATTRIBUTES:
        views = torch.cat([step.features[attribute], step.features[f"target_{attribute}"]])
        rows = torch.arange(len(views) // 2, device=views.device)
        numbers = step.batch.get(f"{attribute}_instance", rows).to(views.device).repeat(2)
        total = total + losses.identity(functional.normalize(views.float(), dim=-1), numbers)
    return total


def words(step: Step) -> Tensor | None:
    """The ungated vectors' distance from the caption's own words, of samples with words and both attributes."""
    if "shape_words" not in step.batch or not step.objective.words:
        return None
    total = step.residuals["shape"].new_zeros(())
    for attribute, value in step.residuals.items():
        anchor = step.encoder.anchor(attribute)
        targets, counted = step.words(step.batch[f"{attribute}_words"], len(anchor))
        total = total + word_loss(anchor + value, targets, counted & step.kept, step.encoder.word_scale)
    return total


TERMS: dict[str, Term] = {
    "denoising": denoising, "mask": mask, "gates": gates, "residual": residual, "invariance": invariance,
    "independence": independence, "instances": instances, "words": words,
}  # fmt: skip
PAIRED = ("invariance", "independence", "instances")  # due every `pairs_every` steps, hence so much stronger


def added_terms(objective: LossConfig) -> dict[str, Term]:
    """The terms of other packages that have a weight.

    Raises:
        UserError: one that no package gives, or a weight that is no finite number of 0 or more.
    """
    found = {}
    for name, weight in objective.terms.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"loss.{name}={weight} given; expected a number, 0 or more")
        if name in TERMS or (term := extensions.load(extensions.LOSSES, name)) is None:
            there = ", ".join(extensions.names(extensions.LOSSES)) or "none are installed"
            raise UserError(f"loss.terms.{name} given; expected a term that a package gives ({there})")
        found[name] = term
    return found


def weighted(step: Step, added: Mapping[str, Term]) -> dict[str, Tensor]:
    """Name -> weight times value, of the terms that the step has something for; their sum is the loss."""
    objective, found = step.objective, {}
    for name, term in {**TERMS, **added}.items():
        weight = objective.terms[name] if name in added else getattr(objective, name, 1.0)
        if (value := term(step)) is not None:
            found[name] = (objective.pairs_every * weight if name in PAIRED else weight) * value
    return found
