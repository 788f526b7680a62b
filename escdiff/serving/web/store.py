"""Concept files of a server's users, each of whom sees their own only.

One folder per owner, one file per concept: any number of processes and machines that see the folder share it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from escdiff.concept import Concept
from escdiff.serving.limits import Busy, Unknown

SUFFIX = ".safetensors"
ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Kept:
    """A stored concept: its id, bytes, and when it was made (seconds since 1970)."""

    id: str
    bytes: int
    created: float


@dataclass(frozen=True)
class ConceptStore:
    """Below `folder`; an owner may keep `most` concepts."""

    folder: Path
    most: int

    def add(self, owner: str, concept: Concept) -> Kept:
        """Keep a concept under a new id, which nobody can guess.

        Raises:
            Busy: the owner keeps too many.
        """
        if (count := len(list(self._owned(owner)))) >= self.most:
            raise Busy(f"you keep {count} concepts, which is the most; delete some")
        identity = uuid4().hex
        file = self._file(owner, identity)
        concept.save(file)
        return _read_entry(file)

    def path(self, owner: str, identity: str) -> Path:
        """The file of a concept.

        Raises:
            Unknown: there is none of this id, or it is somebody else's, which is the same to who asks.
        """
        file = self._file(owner, identity) if ID.fullmatch(identity) else None
        if file is None or not file.is_file():
            raise Unknown(f"there is no concept {identity[:32]!r}; see GET /concepts for yours")
        return file

    def list(self, owner: str) -> list[Kept]:
        """The owner's concepts, the newest first."""
        return sorted(map(_read_entry, self._owned(owner)), key=lambda entry: -entry.created)

    def remove(self, owner: str, identity: str) -> None:
        """Delete a concept.

        Raises:
            Unknown: as of `path`.
        """
        self.path(owner, identity).unlink(missing_ok=True)

    def _owned(self, owner: str):
        return (self.folder / owner).glob(f"*{SUFFIX}")

    def _file(self, owner: str, identity: str) -> Path:
        return self.folder / owner / f"{identity}{SUFFIX}"


def _read_entry(file: Path) -> Kept:
    status = file.stat()
    return Kept(file.stem, status.st_size, status.st_mtime)
