"""Reading tar files that nobody vouches for.

Python's tarfile ends in silence at a damaged header, follows sparse entries to any size, and loops on negative
ones. Here every byte is accounted for: damage is an error, or, where a caller takes note of it, reading goes on
at the next sound header, so that one broken block costs one entry.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from escdiff.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MAX_ENTRY = 1_000_000_000  # bytes
Damage = Callable[[int, str], None]  # (byte offset in the file, what is wrong there)


def read_entries(
    path: str | os.PathLike, on_damage: Damage | None = None, max_bytes: int = MAX_ENTRY
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files in an uncompressed tar, in order; nothing is extracted.

    Args:
        on_damage: takes note of each damaged place, after which reading goes on; without it damage raises.
        max_bytes: larger entries count as damage and are not read.

    Raises:
        UserError: the file cannot be read, is no plain tar, or is damaged.
    """
    path = Path(path)

    def refuse(offset: int, what: str) -> None:
        raise UserError(f"shard {path} cannot be read to its end ({what} at byte {offset}); make or copy it again")

    note = on_damage or refuse
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start: int | None = 0
            if not size:
                note(0, "an empty file")
            while start is not None and start < size:
                stop = yield from _stretch(file, start, size, note, max_bytes)
                start = None if stop is None else _next_header(file, stop + BLOCK, size)
    except OSError as error:
        raise UserError(f"shard {path} cannot be read to its end ({error.strerror}); make or copy it again") from error


def _stretch(file: BinaryIO, start: int, size: int, note: Damage, max_bytes: int):
    """The entries from a header on, up to damage; returns its offset, or None at a proper end."""
    position = start  # behind the last sound entry
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.issparse() or info.size < 0 or tar.offset <= position:
                    raise tarfile.TarError("an entry of impossible size")
                if tar.offset > size:
                    raise tarfile.TarError("an entry that goes on behind the end of the file")
                position = tar.offset
                if info.size > max_bytes:
                    note(info.offset, f"an entry of {info.size} bytes, more than the limit of {max_bytes}")
                elif info.isreg():
                    file.seek(info.offset_data)
                    yield info.name, file.read(info.size)
            position = max(position, tar.offset)  # where tarfile saw the end
    except UserError:
        raise
    # A hostile header makes tarfile raise nearly anything: ValueError, OverflowError, MemoryError, ...
    except Exception as error:
        note(position, _first(error))
        return position
    end = _zeros_until(file, position, size)
    if end == size and size - position >= BLOCK:
        return None
    if end > position:
        note(end, "something behind the end mark")
        return end - BLOCK
    note(end, "no end mark" if end == size else "a damaged header")
    return position


def _next_header(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first sound header from `start` on."""
    file.seek(start)
    for offset in range(start, size - BLOCK + 1, BLOCK):
        block = file.read(BLOCK)
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError):
                continue
            return offset
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
