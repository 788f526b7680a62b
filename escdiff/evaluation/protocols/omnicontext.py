"""OmniContext (Wu et al. 2025, OmniGen2): instructions about reference pictures, of which the pairs of subjects."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from escdiff.evaluation.protocols.cases import FIRST, SECOND
from escdiff.evaluation.protocols.subjects import Subject, read_text
from escdiff.evaluation.report.writing import writing
from escdiff.support.errors import UserError
from escdiff.support.optional import need

LINES = "metadata.jsonl"
COLUMNS = ("key", "task_type", "instruction", "input_images")
NOUN = r"\b(?:the|a|an)\s+(?:(?!the\b|an?\b)[\w'-]+\s+){1,6}"
PICTURE = r"(?:input\s+|reference\s+)?(?:image|picture|photo|figure)"
NUMBERS = {FIRST: r"(?:1|one)", SECOND: r"(?:2|two)"}
log = logging.getLogger(__name__)


def read_omnicontext(root: Path, unpacked: Path) -> list[Subject]:
    """Its pairs: rows of two pictures and no scene, each a subject with a partner.

    Read are its parquet files as the hub has them, whose pictures are written to `unpacked`, or `metadata.jsonl` with a
    row a line, whose `input_images` are paths beside it. In the instruction "the cat in the first image" becomes
    "the <first>"; a row may bring a `prompt` with `<first>` and `<second>` instead. Rows that name no such places are
    left out, and said to be.

    Raises:
        UserError: neither is there, a row lacks something, or no pair is left.
    """
    pairs, odd = [], []
    for row in _rows(root):
        if lost := [name for name in COLUMNS if not row.get(name)]:
            raise UserError(f"a row of {root} has no {', '.join(lost)}; expected {', '.join(COLUMNS)}: fetch it again")
        if len(row["input_images"]) != 2 or "scene" in row["task_type"]:
            continue
        prompt = row.get("prompt") or as_prompt(row["instruction"])
        if not prompt or any(f"<{name}>" not in prompt for name in (FIRST, SECOND)):
            odd.append(str(row["key"]))
            continue
        name = re.sub(r"[^\w.-]", "_", f"{row['task_type']}-{row['key']}")
        first, second = (
            Subject(f"{name}-{i}", (_picture(root, unpacked / f"{name}-{i}.png", image),), "", ())
            for i, image in enumerate(row["input_images"], 1)
        )
        pairs.append(
            Subject(first.name, first.pictures, "", (prompt,), (" ".join(row["instruction"].split()),), second)
        )
    if odd:
        log.warning("left out %d pairs whose instruction names no two places: %s", len(odd), ", ".join(odd[:5]))
    if not pairs:
        raise UserError(f"{root} has no rows of two pictures that can be painted; give the folder of OmniContext")
    return sorted(pairs, key=lambda subject: subject.name)


def as_prompt(instruction: str) -> str:
    """The instruction with `<first>` and `<second>` where it names what is in the two pictures; "" if it does not."""
    text = " ".join(instruction.split())
    for name, number in NUMBERS.items():
        position = rf"(?:(?:the\s+)?{name}\s+{PICTURE}|(?:the\s+)?{PICTURE}\s*#?{number}\b)"
        text, count = re.subn(rf"{NOUN}(?:in|from|of|on)\s+{position}", f"the <{name}>", text, flags=re.IGNORECASE)
        if not count:
            return ""
    return text


def _rows(root: Path) -> Iterator[dict[str, Any]]:
    if (root / LINES).is_file():
        for line in read_text(root / LINES).splitlines():
            if line.strip():
                yield _json(line, root / LINES)
        return
    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise UserError(f"{root} has neither {LINES} nor *.parquet; give the folder of OmniContext")
    parquet = need("pyarrow.parquet", "reading parquet files")
    for path in files:
        for batch in parquet.ParquetFile(path).iter_batches(8):
            yield from batch.to_pylist()


def _json(line: str, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path} has the line {line[:60]!r}; expected an object of JSON a line")
    return row


def _picture(root: Path, copy: Path, image: Any) -> Path:
    """The path of a picture; one within a parquet file is written down first."""
    if isinstance(image, str):
        path = (root / image).resolve()
        if not path.is_relative_to(root.resolve()) or not path.is_file():
            raise UserError(f"{root} has no picture {image}; fetch the data again")
        return path
    if not copy.is_file():
        with writing(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_suffix(".partial")
            try:
                with Image.open(io.BytesIO(image["bytes"])) as picture:
                    picture.save(partial, "PNG")
            except (UnidentifiedImageError, KeyError, TypeError) as error:
                raise UserError(f"{root} has a picture that cannot be read ({error}); fetch the data again") from None
            partial.replace(copy)
    return copy
