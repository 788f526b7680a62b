"""Lists of pictures: CSV, TSV, JSON lines or Parquet, one picture per row, paths relative to the list."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources import Plan, Record, files_plan
from data_prep.text import encoding_of
from escdiff.support.errors import UserError
from escdiff.support.optional import need

PATHS = ("path", "image", "file", "filename", "file_name", "image_path")
NAMES = {"text": "caption", "license": "licence", "label": "category", "class": "category"}


def list_plan(path: Path, shard_size: int) -> Plan:
    """Jobs for the pictures that a list names; its other columns become facts about them.

    Raises:
        UserError: the list cannot be read or has no column of paths.
    """
    records = [record_of(row, number, path) for number, row in enumerate(read_rows(path), 1)]
    if not records:
        raise UserError(f"the list {path} has no rows; name one picture per row")
    return files_plan(path.parent, records, shard_size)


def record_of(row: dict[str, Any], number: int, path: Path) -> Record:
    """Read row `number` of the list `path`.

    Raises:
        UserError: it names no picture.
    """
    column = next((name for name in PATHS if row.get(name)), None)
    if column is None:
        hint = "rows of addresses need --urls" if row.get("url") else f"expected one of {', '.join(PATHS)}"
        raise UserError(f"row {number} of {path} names no picture in its columns {', '.join(map(str, row))}; {hint}")
    if not isinstance(row[column], str):
        hint = "read it with datasets.load_dataset, save that with save_to_disk(DIR) and give DIR"
        raise UserError(f"row {number} of {path} holds a picture itself in its column {column}; {hint}")
    return row[column], row.get("mask") or "", known(row, (column, "mask"))


def known(row: dict[str, Any], but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a row under the names that samples use."""
    plain = {k: v for k, v in row.items() if k not in but and isinstance(v, str | int | float | bool)}
    return {NAMES.get(name, name): value for name, value in plain.items()}


def _object(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line holds no object but {line.strip()[:40]}")
    return row


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a list as dicts.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if path.suffix.lower() == ".parquet":
            parquet = need("pyarrow.parquet", f"reading {path.name}")
            for batch in parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
            return
        with open(path, newline="", encoding=encoding_of(path)) as file:
            if path.suffix.lower() == ".jsonl":
                yield from map(_object, (line for line in file if line.strip()))
            else:
                yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # Arrow's errors are ValueErrors or OSErrors
        raise UserError(f"the list {path} cannot be read ({error}); write it again") from error
