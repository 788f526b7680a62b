"""Watching over one sample: a limit of time, and a crumb that tells which sample a dead process was at.

Three lines of defence: what a decoder raises is an error of that sample; what takes too long is stopped, see
`escdiff.data.limits`; what kills the process or never comes back from C leaves its crumb, and the next try passes it
over.
"""

import faulthandler
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from escdiff.data.limits import time_limit
from escdiff.support.errors import UserError

PATIENCE = 3  # times the limit after which a process that does not stop is ended
POISON = "the process reading it died or did not come back"


class Guard:
    """For the samples of one job.

    Args:
        folder: where crumbs and the list of poisonous samples are, or None to keep neither.
        job: name of the job.
        seconds: per sample; 0 means no limit.
        alone: whether this process may be ended when a sample hangs, since a parent would go on without it.
    """

    def __init__(self, folder: Path | None, job: str, seconds: float = 0.0, alone: bool = False) -> None:
        self.seconds, self.alone = seconds, alone
        self.done = 0  # samples of the job that an earlier try finished
        self._poison = poison(folder, job) if folder else set()
        self._crumb = open(_file(folder, job, "at"), "wb", buffering=0) if folder else None  # noqa: SIM115

    @contextmanager
    def sample(self, key: str) -> Iterator[None]:
        """Read or convert sample `key` in this block.

        Raises:
            UserError: it took too long, or killed an earlier try.
        """
        name = _name(key)
        if name in self._poison:
            raise UserError(f"sample {key} cannot be used: {POISON}; leave it out or save it again")
        self._note(name)
        if self.alone and self.seconds:
            faulthandler.dump_traceback_later(PATIENCE * self.seconds + 1, exit=True, file=self._nowhere())
        try:
            with time_limit(self.seconds, f"sample {key}"):
                yield
        finally:
            if self.alone and self.seconds:
                faulthandler.cancel_dump_traceback_later()
            self._note("-" * len(name))

    def close(self) -> None:
        """Close the file of the crumb."""
        if self._crumb is not None:
            self._crumb.close()
            self._crumb = None

    def _note(self, text: str) -> None:
        """Leave a crumb; what is written stays when the process dies."""
        if self._crumb is not None:
            self._crumb.seek(0)
            self._crumb.write(text.encode())

    def _nowhere(self):
        if not hasattr(self, "_sink"):
            self._sink = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return self._sink


def poison(folder: Path, job: str) -> set[str]:
    """The samples of a job that killed a process."""
    try:
        return set(_file(folder, job, "poison").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def blame(folder: Path, job: str) -> bool:
    """After the process of `job`, which ran alone, died: mark the sample it was at.

    Returns whether there was one that had not been marked before.
    """
    try:
        name = _file(folder, job, "at").read_text(encoding="utf-8")
    except OSError:
        return False
    if not name or "-" in name or name in poison(folder, job):
        return False
    with open(_file(folder, job, "poison"), "a", encoding="utf-8") as file:
        file.write(name + "\n")
    return True


def clear_crumb(folder: Path, job: str) -> None:
    """Remove the note of the sample that a job's process died at."""
    _file(folder, job, "at").unlink(missing_ok=True)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]


def _file(folder: Path, job: str, kind: str) -> Path:
    return folder / f".{job}.{kind}"
