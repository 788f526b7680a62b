"""One way to write a file: beside its name, flushed to the disk, renamed, with the mode that the umask asks for."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from escdiff.support.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PRIVATE = 0o600  # the mode of files that safetensors writes


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make the folder that a command's option names.

    Raises:
        UserError: it cannot be made, or not written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{option} is {folder}, which cannot be made a folder ({error.strerror})"
        raise UserError(f"{problem}; give a folder of your own") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} is {folder}, which you may not write to; give a folder of your own")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` at the end of the block; after an error the old one stands."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{uuid4().hex[:8]}.tmp")  # two writers never share one
    try:
        with open(temporary, "wb") as file:
            yield file
            commit(file, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Write a file so that its name shows the old or the new content and never a part, even after kill -9."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, values: Any) -> None:
    """Write values as indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def save_tensors(path: str | os.PathLike, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whatever device the tensors are on."""
    import safetensors.torch

    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_atomic(path, safetensors.torch.save(plain, dict(metadata)))


def keep_umask(folder: str | os.PathLike) -> None:
    """Give the files below `folder` that a library made private the mode that the umask asks for."""
    probe = Path(folder) / f".{uuid4().hex[:8]}.tmp"  # the umask itself can only be read by changing it
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in Path(folder).rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == PRIVATE:
            path.chmod(mode)


def temporary_beside(path: Path) -> Path:
    """Path to write before the rename: in the same folder, since a rename across filesystems is a copy.

    The name is always the same, so what a killed run left there is written over.
    """
    return path.with_name(f".{path.name}.tmp")


def commit(file: IO[bytes], temporary: Path, path: Path) -> None:
    """Flush the open `file` to the disk and close it, as Windows renames no open ones, then give it its name."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(temporary, path)


def check_space(folder: Path, needed: int) -> None:
    """Refuse a job that the disk has no room for.

    Args:
        needed: bytes.

    Raises:
        UserError: fewer are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        problem = f"about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise UserError(f"the disk of {folder} is too full: {problem}; make room or ask for fewer samples")
