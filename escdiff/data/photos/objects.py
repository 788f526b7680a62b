"""Other photographs of the same object, for references, and which objects are held out for validation.

A sample's json may name its object ("object" or "product"); samples that name the same one show the same thing: views
of it, frames of a video, pictures of a product. Samples of one "group" show the same shape in other colours. Others are
looked for in the sample's own shard alone, so reading stays a stream. Per shard in use a table of where its objects'
samples are is kept: some 500 bytes a sample of which the object is known, for the last `TABLES` shards per worker.
"""

import hashlib
import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from escdiff.data import schema
from escdiff.data.index import Shard
from escdiff.data.shard_store import ShardStore
from escdiff.data.shards import locate

OBJECT, GROUP = ("object", "product"), ("group",)  # json entries that name it; the first that is there counts
TABLES = 8
READ = (*schema.IMAGES, schema.META, schema.MASK)


class Place(NamedTuple):
    """A sample of a shard: its key, and (offset, bytes) of its entries in the shard's file."""

    key: str
    entries: dict[str, tuple[int, int]]


Table = dict[tuple[tuple[str, ...], str], list[Place]]  # (kind, name) -> where its samples are


class Objects:
    """Finds samples of the same object within shards of a store."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self._tables: OrderedDict[str, Table] = OrderedDict()

    def other(
        self,
        shard: Shard,
        key: str,
        meta: Mapping[str, Any],
        kind: tuple[str, ...],
        rng: np.random.Generator,
        among: Any = None,
    ) -> dict[str, Any] | None:
        """Another sample of the same object or group, undecoded, drawn at random; None where there is none.

        Args:
            kind: `OBJECT` or `GROUP`.
            among: the keys that count; all of them if this is no list.

        Raises:
            UserError: the shard cannot be read.
        """
        name = named(meta, kind)
        if name is None:
            return None
        places = self._table(shard).get((kind, name), ())
        candidates = [p for p in places if p.key != key and (not isinstance(among, list) or p.key in among)]
        if not candidates:
            return None
        place, path = candidates[rng.integers(len(candidates))], self.store.shard(shard)
        with open(path, "rb") as file:
            entries = {entry: _read(file, span) for entry, span in place.entries.items() if entry in READ}
        return {"__key__": place.key, "__url__": str(path), **entries}

    def _table(self, shard: Shard) -> Table:
        if shard.name not in self._tables:
            self._tables[shard.name] = self._build(shard)
            if len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard.name)
        return self._tables[shard.name]

    def _build(self, shard: Shard) -> Table:
        path, table = self.store.shard(shard), defaultdict(list)
        with open(path, "rb") as file:
            for key, entries in locate(path):
                meta = parse(_read(file, entries[schema.META])) if schema.META in entries else {}
                for kind in (OBJECT, GROUP):
                    if (name := named(meta, kind)) is not None:
                        table[kind, name].append(Place(key, entries))
        return {name: places for name, places in table.items() if len(places) > 1}


def named(meta: Mapping[str, Any], kind: tuple[str, ...]) -> str | None:
    """The name that a sample's json gives its object or group."""
    name = next((meta[entry] for entry in kind if meta.get(entry) not in (None, "")), None)
    return str(name) if isinstance(name, str | int) else None


def thing_of(raw: Mapping[str, Any]) -> str:
    """Name of an undecoded sample's subject: its object, its group, or, where the json names neither, its key."""
    return named(parse(raw.get(schema.META)), (*OBJECT, *GROUP)) or raw["__key__"]


def parse(data: bytes | None) -> dict[str, Any]:
    """A sample's json; empty where it is missing or damaged, which reading the sample says."""
    try:
        meta = json.loads(data or b"{}")
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def is_held_out(raw: Mapping[str, Any], fraction: float) -> bool:
    """Whether an undecoded sample is for validation, by the hash of what it shows."""
    return fraction > 0 and number_of(f"held out {thing_of(raw)}") < fraction * 2**64


def number_of(text: str) -> int:
    """A number from 0 to 2^64 - 1 that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _read(file, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(span[1])
