"""Reading tar files that nobody vouches for.

Python's tarfile ends in silence at a damaged header, follows sparse entries to any size, and loops on negative
ones. Here every byte is accounted for: damage is an error, or, where a caller takes note of it, reading goes on
at the next sound header, so that one broken block costs one entry.
"""

import mmap
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from escdiff.support.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MAGIC_AT = 257  # offset of "ustar" in a header
MAX_ENTRY = 1_000_000_000  # bytes
Damage = Callable[[int, str], None]  # (byte offset in the file, what is wrong there)


def everything(name: str) -> bool:
    """The filter that lets every entry through."""
    return True


def read_entries(
    path: str | os.PathLike,
    on_damage: Damage | None = None,
    max_bytes: int = MAX_ENTRY,
    accept: Callable[[str], bool] = everything,
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in an uncompressed tar, in order; nothing is extracted.

    Args:
        on_damage: takes note of each damaged place, after which reading goes on; without it damage raises.
        max_bytes: larger entries count as damage and are not read.
        accept: called with every name; where it gives False, the content is empty and its bytes are not read.

    Raises:
        UserError: the file cannot be read, is no plain tar, or is damaged.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for info in _entries(file, path, on_damage, max_bytes):
                file.seek(info.offset_data)
                yield info.name, file.read(info.size) if accept(info.name) else b""
    except OSError as error:
        raise UserError(f"shard {path} cannot be read to its end ({error.strerror}); make or copy it again") from error


def locate_entries(path: str | os.PathLike) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the content, its bytes) of the regular files in a tar, of which only the headers are read.

    Raises:
        UserError: as `read_entries`.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for info in _entries(file, path):
                yield info.name, info.offset_data, info.size
    except OSError as error:
        raise UserError(f"shard {path} cannot be read to its end ({error.strerror}); make or copy it again") from error


def _entries(
    file: BinaryIO, path: Path, on_damage: Damage | None = None, max_bytes: int = MAX_ENTRY
) -> Iterator[tarfile.TarInfo]:
    """The headers of regular files."""

    def refuse(offset: int, problem: str) -> None:
        raise UserError(f"shard {path} cannot be read to its end ({problem} at byte {offset}); make or copy it again")

    note = on_damage or refuse
    size = os.fstat(file.fileno()).st_size
    start: int | None = 0
    if not size:
        note(0, "an empty file")
    while start is not None and start < size:
        last = yield from _stretch(file, start, size, note, max_bytes)
        start = None if last is None else _next_header(file, last + 1, size)


def _stretch(file: BinaryIO, start: int, size: int, note: Damage, max_bytes: int):
    """The regular files from a header on; returns None at a proper end, at damage the offset of the last header.

    Reading goes on behind that and not behind its entry: where bytes are missing, an entry takes its
    neighbour's header for its own end.
    """
    last = position = start  # the last sound header, and the end of its entry
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.issparse() or info.size < 0 or tar.offset <= position:
                    raise tarfile.TarError("an entry of impossible size")
                if tar.offset > size:
                    raise tarfile.TarError("an entry that goes on behind the end of the file")
                last, position = info.offset, tar.offset
                if info.size > max_bytes:
                    note(info.offset, f"an entry of {info.size} bytes, more than the limit of {max_bytes}")
                elif info.isreg():
                    yield info
            position = max(position, tar.offset)  # where tarfile saw the end
    except UserError:
        raise
    # A hostile header makes tarfile raise nearly anything: ValueError, OverflowError, MemoryError, ...
    except Exception as error:
        note(position, _first(error))
        return last
    end = _zeros_until(file, position, size)
    if end == size and size - position >= BLOCK:
        return None
    if end > position:
        note(end, "something behind the end mark")
    else:
        note(end, "no end mark" if end == size else "a damaged header")
    return last


def _next_header(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first sound header from `start` on, at whatever byte, since bytes may be missing."""
    if start >= size:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = start + MAGIC_AT
        while (place := data.find(b"ustar", place)) >= 0:
            offset = place - MAGIC_AT
            try:
                tarfile.TarInfo.frombuf(data[offset : offset + BLOCK], "utf-8", "surrogateescape")
                return offset
            except (tarfile.TarError, ValueError):
                place += 1
    return None


def _zeros_until(file: BinaryIO, start: int, size: int) -> int:
    """Offset of the first block from `start` on that is not zero; `size` if there is none."""
    file.seek(start)
    offset = start
    while block := file.read(BLOCK):
        if any(block):
            return offset
        offset += len(block)
    return size


def _first(error: BaseException) -> str:
    return str(error.args[0]) if error.args and error.args[0] else type(error).__name__
