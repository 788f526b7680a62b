"""Descent on the latents: how far, in which steps, how often, until when (Chefer et al. 2023, section 4).

Legend: B batch, C latent channels, h, w their height and width.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from escdiff.control.base import Control, Run, Step
from escdiff.control.maps import AttentionMaps
from escdiff.support.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """When and how far latents are moved. Shares of the steps are in [0, 1], so that they serve any number of steps.

    Attributes:
        size: of an update at the first step; it falls to size * sqrt(0.5) at the last.
        until: share of the steps with an update each.
        refine: share of the steps -> what 1 - loss must reach there, by more updates; None: all of `refinements`.
        refinements: most updates more at such a step.
        null_seed: updates in a random direction of the gradient's length, as a null to measure against.
    """

    size: float = 20.0
    until: float = 0.5
    refine: Mapping[float, float | None] = field(default_factory=dict)
    refinements: int = 20
    null_seed: int | None = None

    def __post_init__(self) -> None:
        shares = {"until": self.until} | {f"refine at {share}": share for share in self.refine}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise UserError(f"{name}={share} was given; expected a share of the steps in [0, 1]")
        if self.refinements < 0:
            raise UserError(f"refinements={self.refinements} was given; expected 0 or more")

    def size_at(self, step: Step) -> float:
        """Of an update at this step."""
        # The published code lets the square of the step fall linearly from 1 to 1/2.
        share = step.index / (step.total - 1) if step.total > 1 else 0.0
        return self.size * (1 - 0.5 * share) ** 0.5

    def updates(self, step: Step) -> bool:
        """Whether this step has an update."""
        return step.index < round(self.until * step.total)

    def refinement(self, step: Step) -> tuple[int, float | None]:
        """Most refinements at this step, and the loss that makes more needless."""
        for share, reached in self.refine.items():
            if round(share * step.total) == step.index:
                return self.refinements, None if reached is None else max(0.0, 1 - reached)
        return 0, None

    def idle(self, step: Step) -> bool:
        """Whether nothing is moved at this step."""
        return self.size == 0 or not (self.updates(step) or self.refinement(step)[0])


def value_and_gradient(loss: Callable[[Tensor], Tensor], latents: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) losses of latents (B, C, h, w), and their gradients; zero where the loss does not depend on them."""
    latents = latents.detach().requires_grad_(True)
    with torch.enable_grad():
        value_B = loss(latents)
    # A loss may not depend on the latents, such as one without a pair to compare; autograd would refuse it.
    if not value_B.requires_grad:
        return value_B, torch.zeros_like(latents)
    # Samples do not see each other, so the gradient of the sum is each one's own.
    return value_B.detach(), torch.autograd.grad(value_B, latents, torch.ones_like(value_B))[0]


def descend(latents: Tensor, loss: Callable[[Tensor], Tensor], step: Step, schedule: Schedule) -> Tensor:
    """Latents after this step's refinements and update; each sample stops on its own.

    Whether a sample is refined once more is decided by its loss before the last update, as in the published code.
    """
    size, (most, enough) = schedule.size_at(step), schedule.refinement(step)
    generator = None
    if schedule.null_seed is not None:
        # A stream of its own per step: a direction that repeats would add up, which a null must not.
        generator = torch.Generator().manual_seed(1000 * schedule.null_seed + step.index)
    value_B, gradient = value_and_gradient(loss, latents)
    decides_B = value_B
    for _ in range(most):
        # A sample that has reached its bar must not move on because of its neighbours in the batch.
        active_B = torch.ones_like(decides_B) if enough is None else (decides_B > enough).to(latents)
        if not active_B.any():
            break
        latents = latents - size * active_B[:, None, None, None] * _direction(gradient, generator)
        decides_B = value_B
        value_B, gradient = value_and_gradient(loss, latents)
    return latents - size * _direction(gradient, generator) if schedule.updates(step) else latents


def _direction(gradient: Tensor, generator: torch.Generator | None) -> Tensor:
    """The gradient, or for a null a random direction of its length."""
    if generator is None:
        return gradient
    noise = torch.randn(gradient.shape, generator=generator).to(gradient)
    # Of equal length per sample, so that the null differs in direction alone.
    length = (x.flatten(1).norm(dim=1)[:, None, None, None] for x in (gradient, noise))
    return noise * next(length) / next(length)


class MapDescent(Control):
    """A control that moves the latents so that the prompt's attention maps look as an objective asks.

    Args:
        layers: see `AttentionMaps`.
    """

    def __init__(self, schedule: Schedule, layers: int | None = None) -> None:
        self.schedule, self.layers = schedule, layers

    @abstractmethod
    def loss(self, maps: AttentionMaps, step: Step) -> Tensor:
        """(B,) losses of the last pass's maps."""

    def attach(self, run: Run) -> AttentionMaps:
        return AttentionMaps(run.unet, self.layers)  # which says if there is no such layer

    def before(self, step: Step, latents: Tensor) -> Tensor:
        if self.schedule.idle(step):
            return latents
        # Entered for this pass alone: queries and keys of the painting's own pass would cost memory for nothing.
        with AttentionMaps(step.run.unet, self.layers) as maps:

            def loss(latents: Tensor) -> Tensor:
                step.predict(latents)
                return self.loss(maps, step)

            return descend(latents, loss, step, self.schedule)
