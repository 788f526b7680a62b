"""Files of an evaluation: whole or not there, and a sentence for people where a folder refuses them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise UserError(f"{problem}; make room, or give --out a folder of your own") from error


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with writing(path):
        write_atomic(path, text)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Its first column is text, the others are aligned as numbers."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---", *("---:",) * (len(head) - 1)), *rows))
