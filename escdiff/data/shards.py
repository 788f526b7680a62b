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
from escdiff.data.images import MAX_PIXELS, decode_image
from escdiff.data.index import Index, Shard, commit, sha256, temporary_beside
from escdiff.data.tar import Damage, read_entries
from escdiff.errors import UserError


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


def read_raw(path: str | os.PathLike, on_damage: Damage | None = None, first: int = 0) -> Iterator[dict[str, Any]]:
    """The samples of one shard as webdataset dicts of bytes, in order, from number `first` on.

    With `on_damage` a damaged place is noted and reading goes on with the next sample; without it raises. Of the
    samples before `first` only the names are read.

    Raises:
        UserError: the shard is missing, truncated, damaged or no tar; names it.
    """
    path = Path(path)
    last, number = None, -1

    def wanted(name: str) -> bool:
        nonlocal last, number
        if _wanted(name) and (key := tariterators.base_plus_ext(name)[0]) != last:
            last, number = key, number + 1
        return number >= first

    entries = read_entries(path, on_damage, wanted=wanted)
    files = ({"fname": n, "data": d, "__url__": str(path)} for n, d in entries if _wanted(n))

    def twice(error: BaseException) -> bool:
        if isinstance(error, UserError) or not on_damage:
            return False
        on_damage(-1, _first(error))
        return True

    try:
        samples = tariterators.group_by_keys(files, handler=twice if on_damage else reraise_exception)
        yield from islice(samples, first, None)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"shard {path} cannot be read to its end ({_first(error)}); make or copy it again") from error


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """Decode a raw sample: pictures to PIL (RGB; masks and depth as stored), json to dict, npy to array.

    Raises:
        UserError: an entry is damaged or of a kind that is not allowed; names shard and sample.
    """
    where = f"{sample['__key__']} of {sample['__url__']}"
    return {k: v if k.startswith("__") else decode_entry(k, v, where) for k, v in sample.items()}


def decode_entry(name: str, data: bytes, where: str) -> Any:
    """Decode one entry by its extension; see `decode`."""
    if name in (*schema.IMAGES, schema.SHAPE_VIEW, schema.APPEARANCE_VIEW):
        return decode_image(data, f"{name} of sample {where}")
    try:
        if name in (schema.MASK, schema.DEPTH):
            return _decode_plane(data)
        if name == schema.META:
            return json.loads(data)
        if name.endswith("npy"):
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise UserError(f"entry {name} of sample {where} is damaged ({error}); make the shard again") from error
    raise UserError(f"entry {name} of sample {where} is of a kind that is not read; allowed: {schema.KNOWN}")


def read_shard(path: str | os.PathLike, only: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Decoded samples of a shard; `only` decodes (and keeps) just these entries."""
    for sample in read_raw(path):
        if only is not None:
            sample = {k: v for k, v in sample.items() if k.startswith("__") or k in only}
        yield decode(sample)


def index_folder(folder: str | os.PathLike, name: str | None = None) -> Index:
    """Read all tars of a folder that has no index, count and hash them, and write the index.

    Raises:
        UserError: the folder holds no tar, or one is damaged or empty.
    """
    root = Path(folder).expanduser()
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise UserError(f"{root} holds no .tar shards; give the folder of a webdataset")
    shards = []
    for path in paths:
        count = sum(1 for sample in read_raw(path) if schema.image_key(sample))
        if not count:
            raise UserError(f"shard {path} holds no samples; remove it")
        shards.append(Shard(path.name, count, path.stat().st_size, sha256(path)))
    index = Index(name or root.name, shards=shards, planned=len(shards))
    index.save(root)
    return index


def _decode_plane(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("more than 64 megapixels")
    image.load()
    return image


def _wanted(name: str) -> bool:
    """No name that leads out of the shard, and none that webdataset keeps for itself."""
    return not name.startswith(("/", ".", "__")) and ".." not in name


def _first(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
