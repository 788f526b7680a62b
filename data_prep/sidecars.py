"""Sidecars of a picture: NAME.txt or NAME.caption, NAME.json, NAME.mask.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.text import decode_text
from escdiff.data.pictures import MASK
from escdiff.support.errors import UserError

CAPTIONS = ("txt", "caption")  # kohya's trainers write either; the first that is there counts
FACTS = "json"
SUFFIXES = (*(f".{kind}" for kind in CAPTIONS), f".{FACTS}", MASK)
MAX_TEXT = 1_000_000  # bytes of a text or json


def beside(path: Path) -> tuple[dict[str, Any], Path | None]:
    """(facts about the picture `path`, its mask's file or None).

    Raises:
        UserError: a text that cannot be read.
    """
    files = {kind: path.with_suffix(f".{kind}") for kind in (*CAPTIONS, FACTS)}
    mask = path.with_suffix(MASK)
    facts = facts_of({kind: _read(file) for kind, file in files.items() if file.is_file()}, str(path))
    return facts, mask if mask.is_file() else None


def facts_of(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The facts in the texts that belong to the picture `name`, by their kind; the json's caption comes first.

    Raises:
        UserError: one is too long, in an unknown encoding, or no json object.
    """
    facts: dict[str, Any] = {}
    for kind in (FACTS, *CAPTIONS):
        if not (data := texts.get(kind, b"")):
            continue
        if len(data) > MAX_TEXT:
            size = f"{len(data) / 1e6:.0f} MB, more than the limit of {MAX_TEXT / 1e6:g} MB"
            raise UserError(f"the .{kind} of {name} has {size}; make it shorter")
        text = decode_text(data, f".{kind} of {name}")
        if kind == FACTS:
            facts = _object(text, name)
        elif not facts.get("caption"):
            facts["caption"] = text.strip()
    return facts


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the .json of {name} cannot be read ({error}); mend or remove it") from error
    if not isinstance(values, dict):
        raise UserError(f"the .json of {name} holds no object but {type(values).__name__}; mend or remove it")
    return values


def _read(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(MAX_TEXT + 1)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
