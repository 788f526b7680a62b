"""A shard while it is written: what is done of it survives a kill, and the finished file has the same bytes.

Beside the unfinished tar stands a journal with one line per item: where the tar ended behind a sample, or the reject.
Every few seconds the tar and then the journal are flushed to the disk, so the journal never knows more than is there.
"""

import io
import json
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.reject import Reject
from escdiff.data.index import Shard, sha256
from escdiff.support.files import commit, temporary_beside

SYNC_EVERY = 5.0  # seconds


class Part:
    """The shard `path`, continued where an earlier try of the same job stopped."""

    def __init__(self, path: Path, journal: Path) -> None:
        self.path, self.temporary, self._journal = path, temporary_beside(path), journal
        self.rejects: list[Reject] = []
        self.samples, end = 0, 0
        self._lines: list[str] = []  # that are not in the journal yet
        for line in _whole_lines(journal):
            if isinstance(line, dict):
                self.rejects.append(Reject(**line))
            else:
                self.samples, end = self.samples + 1, int(line)
        if end and (not self.temporary.is_file() or self.temporary.stat().st_size < end):
            self.samples, end, self.rejects = 0, 0, []
        if not end and not self.rejects:
            journal.unlink(missing_ok=True)
        self._file = open(self.temporary, "r+b" if end else "w+b")  # noqa: SIM115 - until `close`
        self._file.truncate(end)
        if end:  # the end mark behind which tarfile goes on
            self._file.seek(end)
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self._file.seek(0)
        self._tar = tarfile.open(fileobj=self._file, mode="a" if end else "w")  # noqa: SIM115
        self._synced = time.monotonic()

    @property
    def items(self) -> int:
        """Samples and rejects so far."""
        return self.samples + len(self.rejects)

    def add(self, item: Mapping[str, Any] | Reject) -> None:
        """A finished sample (`__key__` and bytes per entry), or what became of one instead."""
        if isinstance(item, Reject):
            self.rejects.append(item)
            self._lines.append(json.dumps(asdict(item)))
        else:
            for name in sorted(name for name in item if not name.startswith("_")):
                self._tar.addfile(*_entry(f"{item['__key__']}.{name}", item[name]))
            self.samples += 1
            self._lines.append(str(self._file.tell()))
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Flush samples to the disk, then note them in the journal."""
        if self._lines:
            self._file.flush()
            os.fsync(self._file.fileno())
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in self._lines))
                file.flush()
                os.fsync(file.fileno())
            self._lines = []
        self._synced = time.monotonic()

    def finish(self) -> Shard:
        """Give the shard its name."""
        self._tar.close()
        self._file.flush()
        size, digest = self._file.tell(), sha256(self.temporary)
        commit(self._file, self.temporary, self.path)
        self._journal.unlink(missing_ok=True)
        return Shard(self.path.name, self.samples, size, digest)

    def close(self) -> None:
        """Keep what is done of an unfinished shard."""
        if not self._file.closed:
            self.sync()
            self._file.close()


def journal_of(folder: Path, job: str) -> Path:
    """Path of a job's journal."""
    return folder / f".{job}.items"


def items_in(journal: Path) -> int:
    """How many items of an unfinished shard are known to be done."""
    return sum(1 for _ in _whole_lines(journal))


def _whole_lines(journal: Path) -> list[Any]:
    try:
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    values = []
    for line in lines:
        try:
            values.append(json.loads(line) if line.endswith("\n") else None)
        except ValueError:
            values.append(None)
    return values[: values.index(None)] if None in values else values


def _entry(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A tar header as webdataset's writer makes it, without the machine or the hour."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = len(data), 0, 0o444, "escdiff", "escdiff"
    return info, io.BytesIO(data)
