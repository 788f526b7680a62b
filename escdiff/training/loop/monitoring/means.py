"""Means over many batches and all ranks, and of losses by timestep band."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

BANDS, TIMESTEPS = 4, 1000


class Means:
    """Adds up until `take`.

    Attributes:
        sums, counts: by name.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor, count: Tensor | int = 1) -> None:
        """Take part of a mean: a sum over `count` things. What is not finite does not count."""
        value = torch.as_tensor(value).detach().float()
        finite = torch.isfinite(value)  # a skipped step spoils no mean
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + torch.where(finite, value, 0.0)
        self.counts[name] = self.counts.get(name, 0) + finite * count

    def add_bands(self, name: str, error: Tensor, timesteps: Tensor) -> None:
        """Errors (B,) at timesteps (B,), by band: `{name}_t{first timestep}`."""
        width = TIMESTEPS // BANDS
        for band in range(BANDS):
            inside = (timesteps // width == band).to(error.dtype)
            self.add(f"{name}_t{band * width}", (error * inside).sum(), inside.sum().detach())

    def take(self, trainer: L.Trainer) -> dict[str, float]:
        """The means over all ranks, from here on anew; names that rank zero has."""
        own = {name: (float(total), float(self.counts[name])) for name, total in self.sums.items()}
        ranks: list[dict[str, Any]] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        sums = {
            name: [sum(parts) for parts in zip(*(r[name] for r in ranks if name in r), strict=True)] for name in own
        }
        self.sums, self.counts = {}, {}
        return {name: total / count for name, (total, count) in sums.items() if count > 0}
