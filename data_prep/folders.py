"""Folders as people and programs leave them: pictures with what lies beside them, imagefolder's tables, shards."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep import sidecars
from data_prep.lists import read_rows, record_of
from data_prep.sources import Plan, files_plan, mixed_plan, shards_plan
from escdiff.data.index import FILE
from escdiff.data.pictures import SUFFIXES, is_mask
from escdiff.support.errors import UserError

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of imagefolder: rows of file_name, text, ...


@dataclass
class Seen:
    """Contents of a folder, by names from the folder on."""

    pictures: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # by suffix
    shared: int = 0  # pictures whose sidecars belong to another picture, too


def folder_plan(folder: Path, shard_size: int, folder_is: str = "none") -> Plan:
    """All shards and all pictures of a folder and its subfolders, by name.

    Raises:
        UserError: it holds none, or a table of metadata cannot be read.
    """
    seen = look(folder)
    unread = ", ".join(f"{count} {kind}" for kind, count in sorted(seen.unread.items()))
    rows = _rows(folder, seen.tables)
    if not seen.pictures and not seen.tars and not rows:
        hint = f" but {unread}" if unread else ""
        raise UserError(f"the folder {folder} holds no pictures{hint}; put {', '.join(SUFFIXES)} files or shards in it")
    records, untold = [], 0
    for name in seen.pictures:
        facts = {} if folder_is == "none" else {folder_is: (folder / name).parent.name}
        untold += bool(rows) and name not in rows
        records += [(name, mask, {**facts, **more}) for mask, more in rows.pop(name, [("", {})])]
    records += [
        (name, *row) for name, several in rows.items() for row in several
    ]  # no such pictures: their jobs say so
    remarks = [
        f"passed over, as they are neither pictures nor belong to one: {unread}" if unread else "",
        f"{untold} pictures have no row in the tables beside them" if untold else "",
        f"{seen.shared} pictures share their texts or masks with another one of the same stem" if seen.shared else "",
    ]
    pictures = files_plan(folder, records, shard_size, tuple(filter(None, remarks)))
    shards = shards_plan([folder / name for name in seen.tars])
    if not pictures.jobs:
        return replace(shards, remarks=pictures.remarks)
    return mixed_plan(pictures, shards, shard_size) if shards.jobs else pictures


def look(folder: Path) -> Seen:
    """Sort the files of a folder and its subfolders, apart from hidden ones and from datasets that were made there."""
    seen = Seen()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or Path(root, name, FILE).is_file()))
        present, place = set(names), os.path.relpath(root, folder)
        pictures = [name for name in sorted(names) if _is_picture(name, present)]
        stems = Counter(os.path.splitext(name)[0] for name in pictures)
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.normpath(os.path.join(place, name))
            stem, suffix = os.path.splitext(name)
            if _is_picture(name, present):
                seen.pictures.append(path)
                seen.shared += stems[stem] > 1 and any(stem + kind in present for kind in sidecars.SUFFIXES)
            elif suffix == ".tar":
                seen.tars.append(path)
            elif name in TABLES:
                seen.tables.append(path)
            elif not any(name.endswith(kind) and name.removesuffix(kind) in stems for kind in sidecars.SUFFIXES):
                seen.unread[suffix or name] += 1
    return seen


def _is_picture(name: str, beside: set[str]) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".") and not is_mask(name, beside)


def _rows(folder: Path, tables: list[str]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """A picture's name -> (mask, facts) of each row about it, with the paths in the tables from `folder` on."""
    rows = defaultdict(list)
    for table in tables:
        place = os.path.dirname(table)
        for number, row in enumerate(read_rows(folder / table), 1):
            name, mask, facts = record_of(row, number, folder / table)
            rows[os.path.normpath(os.path.join(place, name))].append((mask and os.path.join(place, mask), facts))
    return dict(rows)
