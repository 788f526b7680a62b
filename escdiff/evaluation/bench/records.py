"""Records of the bench, one per picture, and their files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.report.writing import write, writing

RESULT = "result"


@dataclass
class Record:
    """A request, what was made of it and what the oracle read.

    Attributes:
        request: anything with `to_dict` and `from_dict`; a `Request` of ESC-Bench, a `Case` of the protocols.
        reading: see `escdiff.evaluation.bench.scores`.
        values: score -> value, for the scores that could be judged.
        pictures: caption -> path below the output folder; the judged one is `RESULT`.
    """

    request: Any
    reading: dict
    values: dict[str, float]
    pictures: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {**vars(self), "request": self.request.to_dict()}

    @classmethod
    def from_dict(cls, values: dict, kind: type = Request) -> "Record":
        """The inverse of `to_dict`; `kind` is the class of the request."""
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


def save_task(out: Path, task: str, settings: str, seconds: float, records: Sequence[Record]) -> None:
    """Write `tasks/{task}.json`; `settings` is the hash of what the records depend on."""
    about = {"settings": settings, "seconds": seconds, "records": [record.to_dict() for record in records]}
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
        seconds, records = about["seconds"], [Record.from_dict(record, kind) for record in about["records"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    complete = all((out / path).is_file() for record in records for path in record.pictures.values())
    return (seconds, records) if complete else None
