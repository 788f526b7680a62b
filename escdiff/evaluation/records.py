"""What the bench knows about one picture, and the files it is kept in."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.errors import UserError
from escdiff.evaluation.references import Request

RESULT = "result"


@dataclass
class Record:
    """A request, what was made of it and what the oracle read.

    Attributes:
        request: anything with `to_dict` and `from_dict`; a `Request` of ESC-Bench, a `Case` of the protocols.
        reading: see `escdiff.evaluation.scores`.
        values: score -> value, for the scores that could be judged.
        pictures: caption -> path below the output folder; the judged one is `RESULT`.
    """

    request: Any
    reading: dict
    values: dict[str, float]
    pictures: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        return {**vars(self), "request": self.request.to_dict()}

    @classmethod
    def from_dict(cls, values: dict, kind: type = Request) -> "Record":
        return cls(**{**values, "request": kind.from_dict(values["request"])})


def save_pictures(out: Path, task: str, records: Sequence[Record], pictures: Sequence[dict[str, Image.Image]]) -> None:
    """Write `pictures/{task}/{number}_{caption}.png` and note the paths in the records."""
    folder = Path("pictures") / task
    with writing(out / folder):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, (record, named) in enumerate(zip(records, pictures, strict=True)):
        for caption, picture in named.items():
            path = folder / f"{number:04d}_{caption.replace(' ', '_')}.png"
            with writing(out / path):
                picture.save(out / path, compress_level=1)
            record.pictures[caption] = path.as_posix()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written ({error.strerror or error})"
        raise UserError(f"{what}; make room, or give --out a folder of your own") from error


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def save_task(out: Path, task: str, settings: str, seconds: float, records: Sequence[Record]) -> None:
    """Write `tasks/{task}.json`; `settings` is the hash of what the records depend on."""
    about = {"settings": settings, "seconds": round(seconds, 1), "records": [record.to_dict() for record in records]}
    write(out / "tasks" / f"{task}.json", json.dumps(about))


def load_task(out: Path, task: str, settings: str, kind: type = Request) -> tuple[float, list[Record]] | None:
    """Seconds and records of a task that was finished with these settings; None if there is none, or no pictures.

    Args:
        kind: of the requests.
    """
    try:
        about = json.loads((out / "tasks" / f"{task}.json").read_text(encoding="utf-8"))
        if about["settings"] != settings:
            return None
        seconds, records = about["seconds"], [Record.from_dict(each, kind) for each in about["records"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = all((out / path).is_file() for record in records for path in record.pictures.values())
    return (seconds, records) if there else None
