"""How a checkpoint gets onto the disk: beside its name, flushed, read back, renamed, and listed with its SHA-256.

Lightning's own saving writes into the temporary folder and moves the file from there, which is a copy where
that is another file system: a run killed meanwhile leaves half a file under the final name.
"""

import errno
import hashlib
import io
import json
import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from escdiff.data.index import sha256
from escdiff.support.errors import reason_of
from escdiff.support.files import temporary_beside, write_atomic

MANIFEST = "manifest.json"  # file name -> SHA-256, of the checkpoints beside it
DISK_ERRORS = (OSError, SafetensorError)  # of a full disk safetensors says so in a way of its own
log = logging.getLogger(__name__)


class CheckpointFolder(TorchCheckpointIO):
    """Saves into one folder and keeps the newest few.

    The state is copied at once; the disk's part runs in a thread, so the training goes on meanwhile. A failure
    (a full disk) is reported and survived: the checkpoint before stays, and `error` says that there is none newer.

    Attributes:
        error: why the newest save failed; None if it did not, or still runs.
    """

    def __init__(self, keep: int = 2) -> None:
        super().__init__()
        self.keep, self.error = keep, None
        self._writer, self._running = ThreadPoolExecutor(1), Future()
        self._running.set_result(None)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.wait()
        state = io.BytesIO()
        torch.save(checkpoint, state)
        self._running = self._writer.submit(self._write, state.getbuffer(), Path(path))

    def wait(self) -> None:
        """Until the newest save is done."""
        self._running.result()

    def teardown(self) -> None:
        self.wait()

    def _write(self, state: memoryview, path: Path) -> None:
        try:
            try:
                write_verified(path, state)
            except OSError as error:
                if error.errno != errno.ENOSPC or not prune(path.parent, 1):
                    raise
                write_verified(path, state)  # in the room of older checkpoints; the newest good one is still there
            prune(path.parent, self.keep)
            self.error = None
        except OSError as error:
            self.error = error
            log.warning("the checkpoint %s could not be written: %s", path.name, error)


def write_verified(path: Path, state: memoryview) -> None:
    """Write a file, read it back, give it its name, and put it down in the manifest beside it.

    Raises:
        OSError: nothing has changed but the disk's last free bytes.
    """
    temporary, digest = temporary_beside(path), hashlib.sha256(state).hexdigest()
    try:
        with open(temporary, "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        if sha256(temporary) != digest:
            raise OSError(errno.EIO, "what was written reads back differently")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    write_manifest(path.parent, {**read_manifest(path.parent), path.name: digest})


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest (furthest) first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def prune(folder: Path, keep: int) -> int:
    """Delete all but the newest `keep` checkpoints; how many were deleted."""
    files = saved(folder)
    old = files[keep:]
    if old:
        known = read_manifest(folder)
        write_manifest(folder, {path.name: known[path.name] for path in files[:keep] if path.name in known})
    for path in old:
        path.unlink()
    return len(old)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is.

    One that the manifest does not list (its run was killed in between, or is of an older version) must at least load.
    """
    try:
        listed = read_manifest(path.parent).get(path.name)
        if listed is not None:
            return None if sha256(path) == listed else "its SHA-256 differs from the manifest's"
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return None if "global_step" in state else "it is no training checkpoint"
    except Exception as error:  # a damaged file fails in whatever way its bytes lead to
        return reason_of(error)


def read_manifest(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of a folder's checkpoints; empty where the list is missing or damaged."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_manifest(folder: Path, names: dict[str, str]) -> None:
    """Write that list, flushed to the disk."""
    write_atomic(folder / MANIFEST, json.dumps(names, indent=1).encode())
    flush(folder)


def flush(folder: Path) -> None:
    """Push a folder's entries through to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
