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
    """A sample of a shard: its key, (offset, bytes) of its entries in the shard's file, whether it is held out."""

    key: str
    entries: dict[str, tuple[int, int]]
    held_out: bool


Table = dict[tuple[tuple[str, ...], str], list[Place]]  # (kind, name) -> where its samples are


class Objects:
    """Finds samples of the same object within shards of a store.

    Args:
        val_fraction: of the objects, which are held out and are references of each other alone.
    """

    def __init__(self, store: ShardStore, val_fraction: float = 0.0) -> None:
        self.store, self.val_fraction = store, val_fraction
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
        # The objects of a group may be held out one without the other.
        held_out = is_held_out(_thing(meta, key), self.val_fraction)
        candidates = [
            place
            for place in places
            if place.key != key and place.held_out == held_out and (not isinstance(among, list) or place.key in among)
        ]
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
                place = Place(key, entries, is_held_out(_thing(meta, key), self.val_fraction))
                for kind in (OBJECT, GROUP):
                    if (name := named(meta, kind)) is not None:
                        table[kind, name].append(place)
        return {name: places for name, places in table.items() if len(places) > 1}


def named(meta: Mapping[str, Any], kind: tuple[str, ...]) -> str | None:
    """The name that a sample's json gives its object or group."""
    name = next((meta[entry] for entry in kind if meta.get(entry) not in (None, "")), None)
    return str(name) if isinstance(name, str | int) else None


def thing_of(raw: Mapping[str, Any]) -> str:
    """Name of an undecoded sample's subject: its object, its group, or, where the json names neither, its key."""
    return _thing(parse(raw.get(schema.META)), raw["__key__"])


def parse(data: bytes | None) -> dict[str, Any]:
    """A sample's json; empty where it is missing or damaged, which reading the sample says."""
    try:
        meta = json.loads(data or b"{}")
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def is_held_out(thing: str, fraction: float) -> bool:
    """Whether the samples of a subject, see `thing_of`, are for validation, by the hash of its name."""
    return fraction > 0 and number_of(f"held out {thing}") < fraction * 2**64


def number_of(text: str) -> int:
    """A number from 0 to 2^64 - 1 that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _thing(meta: Mapping[str, Any], key: str) -> str:
    return named(meta, (*OBJECT, *GROUP)) or key


def _read(file, span: tuple[int, int]) -> bytes:
    file.seek(span[0])
    return file.read(span[1])
