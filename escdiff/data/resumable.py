"""Data order that survives being killed: what comes next is a function of (seed, epoch, sample number).

Every training batch carries its place; the data module notes the place of the batch that is being trained
(not of those prefetched), saves it with the checkpoint, and a loader made after that starts right behind it.
So resuming neither repeats nor skips a sample, and seeking costs nothing. Sample order depends on the global
batch only, not on how many ranks share it.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from escdiff.data.workers import AUTO, auto_workers
from escdiff.support.errors import UserError

POSITION = "position"
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """The next sample of the run: `sample` counts over all ranks within `epoch`."""

    epoch: int
    sample: int


class Request(NamedTuple):
    """One rank's batch: samples first .. first+count-1 of the epoch's order, and the place behind it."""

    epoch: int
    first: int
    count: int
    after: Place


class PositionSampler(DistributedSampler):
    """Yields the `Request`s of one epoch from a start on; it knows the ranks itself.

    A `DistributedSampler` by type, so that Lightning leaves it in its place.
    """

    def __init__(self, samples: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(samples), num_replicas=world, rank=rank, shuffle=False)
        self.batch_size, self.world = batch_size, world
        self.steps = samples // (batch_size * world)
        self.start = Place(0, 0)
        if not self.steps:
            problem = f"{samples} samples are fewer than one global batch ({world} ranks x {batch_size})"
            raise UserError(f"{problem}; make the batch smaller or render more samples")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Request]:
        epoch, step = self.first_step(self.start)
        for s in range(step, self.steps):
            after = Place(epoch, (s + 1) * self.batch_size * self.world)
            first = (s * self.world + self.rank) * self.batch_size
            yield Request(epoch, first, self.batch_size, after)

    def first_step(self, place: Place) -> tuple[int, int]:
        """(epoch, step) to go on with; the end of an epoch is the start of the next."""
        step = -(-place.sample // (self.batch_size * self.world))
        return (place.epoch + 1, 0) if step >= self.steps else (place.epoch, step)


class ResumableLoader(DataLoader):
    """A loader whose every iteration starts where the data module says and ends with that epoch.

    `cursor` is the object with the `start` to set: the sampler, or the dataset where that streams.
    """

    def __init__(self, *args, module: "ResumableDataModule", cursor: Any, steps: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.module, self.cursor, self.steps = module, cursor, steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.module.aim(self.cursor)
        return super().__iter__()

    def __len__(self) -> int:
        return self.steps

    # Lightning asks a loader for these before it believes that resuming within an epoch is exact.
    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.module.load_state_dict(state_dict)


class ResumableDataModule(lightning.LightningDataModule):
    """Keeps `place`, the next sample to train on, through checkpoints.

    Outside a Lightning trainer call `note(batch)` after each step, or `set_epoch(n)` before each pass.
    """

    num_workers: int | str = 0

    def __init__(self) -> None:
        super().__init__()
        self.place = Place(0, 0)

    def identity(self) -> dict[str, Any]:
        """Everything that the sample order depends on; only a checkpoint of the same identity is resumed exactly."""
        raise NotImplementedError

    def note(self, batch: Any) -> None:
        """Remember that `batch` is being trained on."""
        if isinstance(batch, dict) and POSITION in batch:
            self.place = Place(*(int(v) for v in batch[POSITION]))

    def aim(self, cursor: Any) -> None:
        """Make `cursor` start at the next sample."""
        cursor.start = self.place

    def set_epoch(self, epoch: int) -> None:
        self.place = Place(epoch, 0)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note(batch)  # Lightning calls this right before the step, for prefetched batches too
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.place.epoch, "sample": self.place.sample, "identity": self.identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, current = state_dict["identity"], self.identity()
        if saved == current:
            self.go_on(state_dict)
            return
        differ = [key for key in {**saved, **current} if saved.get(key) != current.get(key)]
        differences = ", ".join(f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in differ)
        log.warning("the data differ from the checkpoint's (%s); going on with the next epoch of these", differences)
        self.place = Place(state_dict["epoch"] + 1, 0)

    def go_on(self, state_dict: dict[str, Any]) -> None:
        """Take up the place of a checkpoint of the same identity."""
        self.place = Place(state_dict["epoch"], state_dict["sample"])

    @property
    def workers(self) -> int:
        """Reading processes of this rank: `num_workers`, where "auto" means those that the machine's cores feed. A
        model that trains on these cores itself gets none.
        """
        if self.num_workers != AUTO:
            return self.num_workers
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0
        return auto_workers(self.trainer.num_devices)

    def ranks(self) -> tuple[int, int]:
        """(rank, world size) of the trainer; (0, 1) without one."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
