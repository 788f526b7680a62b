"""Which timesteps a training sees."""

import torch
from torch import Tensor

from escdiff.conditioning import ConditioningSpace

TIMESTEPS = 1000


def draw_timesteps(
    count: int,
    draws: int,
    density: float | Tensor,
    space: ConditioningSpace | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Timestep indices (count, draws) and the stage of each row (count,).

    A density that is a number b is proportional to t^b: above 0 it leans to high noise, since a lightly noised target
    gives its shape and colours away. Otherwise it is the weights (1000,) of the timesteps. The draws of a row are
    stratified over that distribution (one in each of `draws` equally likely intervals), so a row's mean error varies
    less. With several stages a row stays within one, because its prompt is encoded for one.
    """
    law = _Table(density.to(device)) if isinstance(density, Tensor) else _Power(density)
    bounds = torch.tensor((0, TIMESTEPS) if space is None else space.stage_bounds, device=device)
    stage = torch.zeros(count, dtype=torch.long, device=device)
    if len(bounds) > 2:
        first = law.at(torch.rand(count, device=device))
        stage = torch.bucketize(first, bounds[1:-1].to(first), right=True)
    low, high = (law.below(b) for b in (bounds[stage], bounds[stage + 1]))
    share = (torch.arange(draws, device=device) + torch.rand(count, draws, device=device)) / draws
    level = low[:, None] + (high - low)[:, None] * share
    timesteps = law.at(level).long()
    return timesteps.clamp(bounds[stage][:, None], bounds[stage + 1][:, None] - 1), stage


class _Power:
    """The density t^bias."""

    def __init__(self, bias: float) -> None:
        self.power = 1 + bias

    def below(self, timesteps: Tensor) -> Tensor:
        """The share of the distribution below timesteps."""
        return (timesteps.double() / TIMESTEPS) ** self.power

    def at(self, level: Tensor) -> Tensor:
        """Timesteps below which a share of the distribution lies."""
        return TIMESTEPS * level ** (1 / self.power)


class _Table:
    """A weight (1000,) for every timestep."""

    def __init__(self, weights: Tensor) -> None:
        total = weights.double().cumsum(0)
        self.shares = torch.cat([total.new_zeros(1), total / total[-1]])

    def below(self, timesteps: Tensor) -> Tensor:
        """As of `_Power`."""
        return self.shares[timesteps]

    def at(self, level: Tensor) -> Tensor:
        """As of `_Power`."""
        return torch.bucketize(level.double(), self.shares[1:], right=True)
