"""The plan for a source: of which kind it is, and the jobs that read it."""

from pathlib import Path

from data_prep.folders import folder_plan
from data_prep.lists import list_plan
from data_prep.saved_datasets import saved_plan
from data_prep.sources import Plan, files_plan, shards_plan
from escdiff.data.pictures import SUFFIXES, expand
from escdiff.support.errors import UserError

LISTS = (".csv", ".tsv", ".jsonl", ".parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")  # one of them is in a saved dataset of `datasets`
SAME_FOLDER = ("none", "category", "object")


def kind_of(source: Path) -> str:
    """Kind of `source`, as `make_plan` takes it: saved, folder, shard or list."""
    source = expand(source)
    if not source.is_dir():
        return "shard" if source.suffix == ".tar" else "list"
    return "saved" if any((source / name).is_file() for name in SAVED) else "folder"


def make_plan(source: Path, shard_size: int, folder_is: str = "none", split: str | None = None) -> Plan:
    """Jobs for whatever `source` is: a folder of pictures, of shards or of a saved dataset, a list, one shard.

    Raises:
        UserError: it is none of these, or empty.
    """
    source = expand(source)
    if folder_is not in SAME_FOLDER:
        raise UserError(f"--folder-is is {folder_is!r}; give one of {', '.join(SAME_FOLDER)}")
    if shard_size < 1:
        raise UserError(f"--shard-size is {shard_size}; give at least 1")
    if source.is_dir():
        if kind_of(source) == "saved":
            return saved_plan(source, shard_size, split)
        return folder_plan(source, shard_size, folder_is)
    if not source.is_file():
        raise UserError(f"there is nothing at {source}; give a folder, a list or shards of pictures")
    if source.suffix == ".tar":
        return shards_plan([source])
    if source.suffix.lower() in LISTS:
        return list_plan(source, shard_size)
    if source.suffix.lower() in SUFFIXES:
        return files_plan(source.parent, [(source.name, "", {})], shard_size)
    expected = f"a folder, a list ({', '.join(LISTS)}) or .tar shards; lists of addresses need --urls"
    raise UserError(f"{source} is not a kind of input this command knows; give {expected}")
