"""The index beside the shards: what a dataset is, and for each shard its samples, bytes and SHA-256.

It makes steps per epoch known before the first read, and loss of data an error instead of a surprise.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic

FILE = "index.json"
FORMAT, VERSION = "escdiff-shards", 1


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the dataset's folder, sample count, size in bytes, hex SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class Index:
    """A dataset: its name, the seed and options it was made with, and its shards in order.

    `planned` is how many shards the finished dataset will have; while it is larger than `len(shards)` the
    dataset is still being made.
    """

    name: str
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    planned: int = 0

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def filled(self) -> list[Shard]:
        """The shards that hold samples."""
        return [shard for shard in self.shards if shard.samples]

    @property
    def complete(self) -> bool:
        """Whether every planned shard is listed."""
        return len(self.shards) >= self.planned

    def first_sample(self, shard: Shard) -> int:
        """Number, within the dataset, of the first sample of `shard`."""
        return sum(other.samples for other in self.shards[: self.shards.index(shard)])

    def fingerprint(self) -> str:
        """A short hash of all the data, for caches made from it."""
        return hashlib.sha256("".join(s.name + s.sha256 for s in self.shards).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write the index beside the shards, whole or not at all."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_atomic(Path(folder) / FILE, json.dumps(values, indent=1).encode())

    @classmethod
    def load(cls, folder: str | os.PathLike, require_complete: bool = True) -> "Index":
        """Read a folder's index.

        Raises:
            UserError: there is none, it is not one of ours, or the dataset is unfinished.
        """
        path = Path(folder).expanduser() / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT or values.pop("version") != VERSION:
                raise ValueError("other format or version")
            index = cls(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})
        except FileNotFoundError as error:
            hint = "make data with `python -m data_prep`, or `python -m data_prep index` shards of your own"
            raise UserError(f"{Path(folder)} holds no {FILE}; {hint}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a readable shard index ({error}); make the data again") from error
        if any(Path(shard.name).name != shard.name for shard in index.shards):
            raise UserError(f"{path} names a shard outside its own folder; make the data again")
        if require_complete and not index.complete:
            state = f"{len(index.shards)} of {index.planned} shards"
            raise UserError(f"the dataset in {Path(folder)} is unfinished ({state}); run its data_prep command again")
        return index

    def check(self, folder: str | os.PathLike, hashes: bool = False) -> None:
        """Compare the shards with the index: sizes at once, contents with `hashes` (reads every byte).

        Raises:
            UserError: a shard is missing or differs; names it.
        """
        for shard in self.shards:
            path = Path(folder) / shard.name
            if not path.is_file():
                raise UserError(f"shard {path} is missing though the index lists it; make or copy it again")
            size = path.stat().st_size
            if size != shard.bytes:
                raise UserError(f"shard {path} has {size} bytes, the index says {shard.bytes}; make or copy it again")
            if hashes and sha256(path) != shard.sha256:
                raise UserError(f"shard {path} is damaged: its SHA-256 differs from the index; make or copy it again")


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
