"""Writing and reading webdataset shards.

Files are opened by us and grouped into samples by webdataset, so neither `pipe:` nor any other URL is ever
followed; entries are decoded by our own allow-list: pictures, JSON, and .npy without pickle.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset import tariterators
from webdataset.handlers import reraise_exception
from webdataset.writer import TarWriter

from escdiff.data import schema
from escdiff.data.index import Index, Shard, sha256
from escdiff.data.pictures import MAX_PIXELS, decode_image
from escdiff.data.tar import Damage, locate_entries, read_entries
from escdiff.support.errors import UserError
from escdiff.support.files import commit, temporary_beside


def encode_png(image: np.ndarray | Image.Image) -> bytes:
    """Lossless; compression level 1 is several times faster than the default and about 15 % larger."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """Without halved colours, which would blur what the appearance filter reads."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_json(values: dict[str, Any]) -> bytes:
    """Bytes that do not depend on the order of the keys."""
    return json.dumps(values, separators=(",", ":"), sort_keys=True).encode()


def write_shard(path: Path, samples: Iterable[dict[str, Any]]) -> Shard:
    """Write samples (`__key__` and bytes per entry) as one tar; the same samples give the same bytes.

    The name appears only when everything is on the disk.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    count = 0
    with open(temporary, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="escdiff", group="escdiff") as writer:
            for sample in samples:
                writer.write(sample)
                count += 1
        size = file.tell()
        file.flush()
        digest = sha256(temporary)
        commit(file, temporary, path)
    return Shard(path.name, count, size, digest)


def read_raw(
    path: str | os.PathLike,
    on_damage: Damage | None = None,
    first: int = 0,
    only: tuple[str, ...] | None = None,
) -> Iterator[dict[str, Any]]:
    """The samples of one shard as webdataset dicts of bytes, in order, from number `first` on.

    With `on_damage` a damaged place is noted and reading goes on with the next sample; without it raises. It is also
    told (at byte -1) of entries that are passed over for their names. Of the samples before `first`, and of
    entries that are not among `only`, the names are read and the contents left empty.

    Raises:
        UserError: the shard is missing, truncated, damaged or no tar; names it.
    """
    path = Path(path)
    last, number = None, -1

    def accept(name: str) -> bool:
        nonlocal last, number
        key, kind = _split(_plain(name))
        if key not in (None, last):
            last, number = key, number + 1
        return number >= first and (only is None or kind in only)

    def files() -> Iterator[dict[str, Any]]:
        for name, data in read_entries(path, on_damage, accept=accept):
            name = _plain(name)
            if (reason := _passed_over(name)) is None:
                yield {"fname": name, "data": data, "__url__": str(path)}
            elif reason and on_damage:
                on_damage(-1, f"the entry {name}, {reason},")

    def twice(error: BaseException) -> bool:
        if isinstance(error, UserError) or not on_damage:
            return False
        on_damage(-1, _first(error))
        return True

    try:
        samples = tariterators.group_by_keys(files(), handler=twice if on_damage else reraise_exception)
        yield from islice(samples, first, None)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"shard {path} cannot be read to its end ({_first(error)}); make or copy it again") from error


def locate(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, entry -> (offset, bytes) in the file) of a shard's samples, without their contents.

    Raises:
        UserError: as `read_raw`.
    """
    last, places = None, {}
    for name, offset, size in locate_entries(path):
        key, entry = _split(_plain(name))
        if key is None:
            continue
        if key != last and last is not None:
            yield last, places
            places = {}
        last, places[entry] = key, (offset, size)
    if last is not None:
        yield last, places


def decode(sample: dict[str, Any], side: int | None = None) -> dict[str, Any]:
    """Decode a raw sample: pictures to PIL (RGB; masks and depth as stored), json to dict, npy to array.

    Args:
        side: pixels that are enough for the shorter side of pictures, see `escdiff.data.pictures.decode_image`.

    Raises:
        UserError: an entry is damaged or of a kind that is not allowed; names shard and sample.
    """
    origin = f"{sample['__key__']} of {sample['__url__']}"
    return {k: v if k.startswith("__") else decode_entry(k, v, origin, side) for k, v in sample.items()}


def decode_entry(name: str, data: bytes, origin: str, side: int | None = None) -> Any:
    """Decode one entry by its extension; see `decode`."""
    if name in (*schema.IMAGES, schema.SHAPE_VIEW, schema.APPEARANCE_VIEW):
        return decode_image(data, f"{name} of sample {origin}", side=side)
    try:
        if name in (schema.MASK, schema.DEPTH, schema.THINGS):
            return _decode_plane(data)
        if name == schema.META:
            return json.loads(data)
        if name.endswith("npy"):
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise UserError(f"entry {name} of sample {origin} is damaged ({error}); make the shard again") from error
    raise UserError(f"entry {name} of sample {origin} is of a kind that is not read; allowed: {schema.KNOWN}")


def read_shard(path: str | os.PathLike, only: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Decoded samples of a shard; `only` decodes (and keeps) just these entries."""
    for sample in read_raw(path, only=only):
        if only is not None:
            sample = {k: v for k, v in sample.items() if k.startswith("__") or k in only}
        yield decode(sample)


def index_folder(folder: str | os.PathLike, name: str | None = None) -> Index:
    """Read all tars of a folder that has no index, count and hash them, and write the index.

    Raises:
        UserError: the folder holds no tar, or one is damaged or empty, or holds what no training would read.
    """
    root = Path(folder).expanduser()
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise UserError(f"{root} holds no .tar shards; give the folder of a webdataset")
    shards = []
    for path in paths:
        if not (count := _count(path)):
            raise UserError(f"shard {path} holds no samples; remove it")
        shards.append(Shard(path.name, count, path.stat().st_size, sha256(path)))
    index = Index(name or root.name, shards=shards, planned=len(shards))
    index.save(root)
    return index


def _count(path: Path) -> int:
    """Samples of a shard whose every entry belongs to exactly one."""

    def refuse(offset: int, problem: str) -> None:
        if offset >= 0:
            raise UserError(
                f"shard {path} cannot be read to its end ({problem} at byte {offset}); make or copy it again"
            )
        raise UserError(
            f"shard {path} cannot be used as it is ({problem} would not be read); `ingest` makes sound shards"
        )

    keys: set[str] = set()
    for sample in read_raw(path, refuse):
        key = sample["__key__"]
        if key in keys:
            refuse(-1, f"the sample {key}, whose files lie apart from each other,")
        if len(pictures := [name for name in schema.IMAGES if name in sample]) > 1:
            refuse(-1, f"more than one of the pictures {', '.join(pictures)} of the sample {key}")
        schema.image_key(sample)
        keys.add(key)
    return len(keys)


def _decode_plane(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("more than 64 megapixels")
    image.load()
    return image


def _split(name: str) -> tuple[str | None, str | None]:
    """The sample that an entry belongs to, and what it is of it."""
    key, kind = tariterators.base_plus_ext(name) if _passed_over(name) is None else (None, None)
    return key, kind and kind.lower()


def _plain(name: str) -> str:
    """`tar -C DIR -cf X.tar .` calls its entries ./NAME."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _passed_over(name: str) -> str | None:
    """Why an entry is not read; "" for hidden files, which nobody misses; None where it is read."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "whose name leads out of the shard"
    if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX":
        return ""
    return "whose name webdataset keeps for itself" if name.startswith("__") else None


def _first(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
