"""Which sample comes when: a pure function of (seed, step), so that a resumed run goes on exactly where it was."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """Endless batches of (epoch, row) visits; every epoch is its own permutation drawn from (seed, epoch).

    Attributes:
        step: number of the next batch. Set it before iterating to resume: the seek costs nothing.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if rows < batch_size * world_size:
            raise ValueError(f"{rows} samples are too few for {world_size} batches of {batch_size}")
        self.rows, self.batch_size, self.seed, self.step = rows, batch_size, seed, 0
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.rows // (self.batch_size * self.world_size)
        epoch, order = -1, None
        while True:
            if self.step // per_epoch != epoch:
                epoch = self.step // per_epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            first = (self.step % per_epoch * self.world_size + self.rank) * self.batch_size
            self.step += 1
            yield [(epoch, int(row)) for row in order[first : first + self.batch_size]]
