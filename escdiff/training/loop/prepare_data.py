"""Training data for the loop: encoded if it is not yet, and continued where a stopped run left off."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

from escdiff.data.index import Index
from escdiff.data.latent_cache import Pictures, encode_dataset, missing
from escdiff.data.pictures import expand
from escdiff.training.loop.sample_order import EpochSampler


class EndlessData(L.LightningDataModule):
    """Wraps a loader over an `EpochSampler`; keeps the number of batches trained on through checkpoints."""

    def __init__(self, loader: DataLoader) -> None:
        super().__init__()
        if not isinstance(loader.batch_sampler, EpochSampler):
            raise TypeError("a recipe gives a LightningDataModule or a DataLoader over an EpochSampler")
        self.loader, self.step = loader, 0

    def train_dataloader(self) -> DataLoader:
        sampler = self.loader.batch_sampler
        sampler.step = self.step
        sampler.rank, sampler.world_size = self.trainer.global_rank, self.trainer.world_size
        return self.loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.step += 1  # called right before the step; what was prefetched and not trained on does not count
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = state_dict["step"]


def ensure_latents(
    root: str,
    vae: nn.Module,
    moments: Callable[[Tensor], Tensor],
    key: str,
    device: str,
    pictures: Pictures | None = None,
) -> None:
    """Encode the pictures of a data set that are not yet in its cache; rank zero does, the others wait.

    Args:
        moments, key, pictures: see `escdiff.data.latent_cache.encode_dataset`.
        device: where to; the model comes back from there.

    Raises:
        UserError: no finished data set there, or a shard is damaged.
    """
    folder = expand(root)

    def make() -> None:
        with lent(vae, device):
            encode_dataset(folder, moments, key, device=device, pictures=pictures)

    on_rank_zero(make, lambda: not missing(folder, Index.load(folder), key))


@contextmanager
def lent(model: nn.Module, device: str) -> Iterator[None]:
    """Within the block the model is on another device."""
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def on_rank_zero(make: Callable[[], None], done: Callable[[], bool]) -> None:
    """Rank zero makes what is not done; the others wait until it is."""
    while not done():
        if rank_zero_only.rank == 0:
            return make()
        time.sleep(2)
