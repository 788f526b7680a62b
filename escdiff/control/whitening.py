"""Keeping the noise of an inversion like noise (Parmar et al. 2023, "pix2pix-zero", section 3.1).

What DDIM inversion predicts as noise is correlated in itself; each prediction takes some steps down the squares of its
auto-correlation and down its distance from a standard normal distribution.
Theirs: shifts from 1 pixel on; in diffusers' version a shift may be 0, whose product is the variance. Ours: from 1 on.
Legend: B batch, C latent channels, h, w their sides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 8  # pixels a side of the coarsest level
TINY = 1e-7


@dataclass(frozen=True)
class Whitening:
    """Strength and steps of the whitening.

    Attributes:
        rounds: per prediction; 0 leaves it alone.
        shifts: steps on the auto-correlation per round, each with other random shifts.
        correlation, divergence: sizes of the steps, the first of all `shifts` together.
        seed: of the shifts.
    """

    rounds: int = 5
    shifts: int = 5
    correlation: float = 20.0
    divergence: float = 20.0
    seed: int = 0

    def apply(self, output: Tensor, noise_of: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        """The U-Net's output (B, C, h, w), moved.

        Args:
            noise_of: what noise an output stands for.
        """
        for _ in range(self.rounds):
            for _ in range(self.shifts):
                step = _gradient(output, lambda x: auto_correlation(noise_of(x), generator))
                output = output - self.correlation / self.shifts * step
            output = output - self.divergence * _gradient(output, lambda x: divergence(noise_of(x)))
        return output


def auto_correlation(noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sum over maps, levels and directions of (mean of noise times itself, shifted)^2, at random shifts of 1 to h/2 - 1
    pixels; a level has half the sides of the one before, down to `SMALLEST`."""
    total = noise.new_zeros(())
    for level in noise.flatten(0, 1)[:, None, None]:  # (1, 1, h, w): each map has shifts of its own
        while True:
            shift = int(torch.randint(1, max(2, level.shape[2] // 2), (1,), generator=generator))
            for side in (2, 3):
                total = total + (level * level.roll(shift, side)).mean().square()
            if level.shape[2] <= SMALLEST:
                break
            level = F.avg_pool2d(level, 2)
    return total


def divergence(noise: Tensor) -> Tensor:
    """Twice the Kullback-Leibler divergence from a standard normal distribution: var + mean^2 - 1 - log var."""
    mean, variance = noise.mean(), noise.var()
    return variance + mean.square() - 1 - torch.log(variance + TINY)


def _gradient(output: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    output = output.detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(loss(output), output)[0]
