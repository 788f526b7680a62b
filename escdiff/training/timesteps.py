"""Which timesteps a training sees."""

import torch
from torch import Tensor

from escdiff.conditioning import ConditioningSpace

TIMESTEPS = 1000


def draw_timesteps(
    count: int,
    draws: int,
    bias: float,
    space: ConditioningSpace | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Timestep indices (count, draws) and the stage of each row (count,).

    The density is proportional to t^bias: a bias above 0 leans to high noise, since a lightly noised target
    gives its shape and colours away. The draws of a row are stratified over that distribution (one in each
    of `draws` equally likely intervals), so a row's mean error varies less. With several stages a row stays
    within one, because its prompt is encoded for one.
    """
    bounds = torch.tensor((0, TIMESTEPS) if space is None else space.stage_bounds, device=device)
    power = 1 + bias
    stage = torch.zeros(count, dtype=torch.long, device=device)
    if len(bounds) > 2:
        first = TIMESTEPS * torch.rand(count, device=device) ** (1 / power)
        stage = torch.bucketize(first, bounds[1:-1].to(first), right=True)
    low, high = ((b.double() / TIMESTEPS) ** power for b in (bounds[stage], bounds[stage + 1]))
    share = (torch.arange(draws, device=device) + torch.rand(count, draws, device=device)) / draws
    level = low[:, None] + (high - low)[:, None] * share
    timesteps = (TIMESTEPS * level ** (1 / power)).long()
    return timesteps.clamp(bounds[stage][:, None], bounds[stage + 1][:, None] - 1), stage
