"""Datasets that Hugging Face `datasets` saved on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.dataset import Job
from data_prep.lists import known
from data_prep.sources import NAME, Plan, key
from escdiff.support.errors import UserError
from escdiff.support.optional import need


@dataclass(frozen=True)
class Rows:
    """Rows `first` .. `first + count - 1` of a split."""

    first: int
    count: int
    folder: str
    split: str | None
    column: str

    def candidates(self) -> Iterator[dict[str, Any]]:
        """The rows, with their labels by name."""
        datasets = need("datasets", "reading a saved dataset")
        rows = _split(datasets, Path(self.folder), self.split)
        rows = rows.cast_column(self.column, datasets.Image(decode=False))  # our own decoder reads the bytes
        for number in range(self.first, self.first + self.count):
            row = rows[number]
            stored = row[self.column] or {}
            data = stored.get("bytes") or (Path(stored["path"]) if stored.get("path") else None)
            source = f"{Path(self.folder).name}#{number}"
            meta = {"source": source, **_labels(rows.features, known(row, (self.column,)))}
            yield {"__key__": key(number), "__source__": source, "data": data, "mask": None, "meta": meta}


def saved_plan(folder: Path, shard_size: int, split: str | None) -> Plan:
    """Jobs of `shard_size` rows each.

    Raises:
        UserError: not a dataset with pictures, or which split is not said.
    """
    datasets = need("datasets", "reading a saved dataset")
    rows = _split(datasets, folder, split)
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise UserError(f"{folder} has {len(columns)} columns of pictures; save it with exactly one")
    files = sorted(folder.rglob("*.arrow"))
    fingerprint = f"{split}:" + ",".join(f"{file.relative_to(folder)}:{file.stat().st_size}" for file in files)
    firsts = range(0, len(rows), shard_size)
    jobs = [
        Job(f"{NAME}-{i:06d}", count, Rows(first, count, str(folder), split, columns[0]))
        for i, first in enumerate(firsts)
        for count in [min(shard_size, len(rows) - first)]
    ]
    return Plan(jobs, fingerprint)


def _split(datasets, folder: Path, split: str | None):
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no readable saved dataset ({error}); save it again") from error
    if not isinstance(dataset, datasets.DatasetDict):
        return dataset
    if split not in dataset:
        raise UserError(f"{folder} has the splits {', '.join(dataset)}; name one of them with --split")
    return dataset[split]


def _labels(features, facts: dict[str, Any]) -> dict[str, Any]:
    """Class numbers as their names."""
    for column in ("label", "category", "class"):
        kind = features.get(column)
        if hasattr(kind, "int2str") and isinstance(facts.get("category"), int):
            facts["category"] = kind.int2str(facts["category"])
    return facts
