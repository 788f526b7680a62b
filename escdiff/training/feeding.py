"""Training data for the loop: rendered if it is not there, and continued where a stopped run left off."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

from escdiff.data.images import expand
from escdiff.data.index import FILE, Index
from escdiff.data.latents import encode_dataset, missing
from escdiff.data.store import is_address
from escdiff.data.tokens import encode_tokens, tokens_missing
from escdiff.errors import UserError
from escdiff.training.options import option
from escdiff.training.sampling import EpochSampler


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


def ensure_data(config: Any) -> None:
    """Render Still Life into `data.root` where no finished dataset is.

    Reads `data.root`, and for rendering `data.num_samples`, `data.seed`, `data.size`, `data.split` and
    `data.render_workers`. A dataset of any kind that is there and finished is taken as it is.

    Raises:
        UserError: the folder holds something else, or the disk is too full.
    """
    if is_address(config.data.root):
        return  # never made here
    root = expand(config.data.root)
    _on_rank_zero(partial(_render, config, root), partial(_finished, root))


def _render(config: Any, root: Path) -> None:
    try:
        from data_prep.still_life import StillLifeOptions, make_still_life
    except ImportError as error:
        what = f"there is no dataset in {root} and data_prep is not installed"
        raise UserError(f"{what}; make one in a clone by `python -m data_prep still-life`") from error
    options = StillLifeOptions(
        seed=option(config, "data.seed", 0), size=option(config, "data.size", 128),
        shard_size=option(config, "data.shard_size", 512), split=option(config, "data.split", "train"),
    )  # fmt: skip
    make_still_life(root, option(config, "data.num_samples", 20_000), options, option(config, "data.render_workers", 0))


def ensure_latents(root: str, vae: nn.Module, moments: Callable[[Tensor], Tensor], key: str, device: str) -> None:
    """Encode the pictures of a data set that are not yet in its cache; rank zero does, the others wait.

    Args:
        moments, key: of `vae`, see `escdiff.data.latents.encode_dataset`.
        device: where to; the model comes back from there.

    Raises:
        UserError: no finished data set there, or a shard is damaged.
    """
    folder = expand(root)

    def make() -> None:
        with _lent(vae, device):
            encode_dataset(folder, moments, key, device=device)

    _on_rank_zero(make, lambda: not missing(folder, Index.load(folder), key))


def ensure_tokens(
    root: str, vision: nn.Module, encode_fn: Callable[[Tensor], Tensor], key: str, values: int, device: str
) -> None:
    """The same for a vision tower's tokens; arguments and errors as of `escdiff.data.tokens.encode_tokens`."""

    def make() -> None:
        with _lent(vision, device):
            encode_tokens(root, encode_fn, key, values, device)

    _on_rank_zero(make, lambda: not tokens_missing(root, key))


@contextmanager
def _lent(model: nn.Module, device: str) -> Iterator[None]:
    home = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)


def _on_rank_zero(make: Callable[[], None], done: Callable[[], bool]) -> None:
    while not done():
        if rank_zero_only.rank == 0:
            return make()
        time.sleep(2)


def _finished(root: Path) -> bool:
    return (root / FILE).is_file() and Index.load(root, require_complete=False).complete
