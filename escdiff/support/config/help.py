"""The keys as text for `--help`, and as the page docs/configuration.md: `python -m escdiff.support.config.help`."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from escdiff.support.config.control import KINDS
from escdiff.support.config.folder import groups_of, options
from escdiff.support.config.infer import InferConfig
from escdiff.support.config.keys import Key
from escdiff.support.config.train import TrainConfig

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Every key of `python train.py` and `python infer.py`, as their `--help` lists them. Set a key as `data.size=256` and
choose a preset of a group as `backbone=sd15`; presets are the YAML files in `configs/`. A key that does not exist, a
value of another type and one out of bounds end the command with one sentence, before anything is loaded.

`python -m escdiff.support.config.help` writes this page from the dataclasses in `escdiff/support/config/`.
"""


def groups_text(door: str) -> str:
    """Every group of a command with its presets, a line each."""
    groups = [group for group in groups_of(door) if " " not in group]  # "optional ..." follows another group
    return "\n".join(f"  {group:<15}{options(group)}" for group in groups)


def keys_text(kind: type) -> str:
    """Every key of a configuration with its default, what it says and what it may be."""
    blocks = []
    for title, about, keys in sections(kind):
        lines = [f"{title}: {about}" if title else about]
        lines += [f"  {key.name}={show(key.default)}\n      {key.help} ({key.expected})" for key in keys]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def page() -> str:
    """The reference of all keys in Markdown."""
    parts = [INTRODUCTION]
    for door, kind in {"train": TrainConfig, "infer": InferConfig}.items():
        parts.append(f"## python {door}.py\n\nGroups and their presets:\n")
        parts.append(f"```text\n{groups_text(door)}\n```\n")
        for title, about, keys in sections(kind):
            parts.append(f"### {door}: {title or 'keys without a block'}\n\n{about}\n")
            parts.append("| key | default | may be | |\n| --- | --- | --- | --- |")
            rows = [(f"`{key.name}`", f"`{show(key.default)}`", key.expected, key.help) for key in keys]
            parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            parts.append("")
    return "\n".join(parts)


def sections(kind: type) -> Iterator[tuple[str, str, list[Key]]]:
    """(title, what the dataclass says of itself, keys) of a configuration, its blocks and the presets of its groups."""
    keys = [Key(field.name, field) for field in fields(kind)]
    yield "", kind.__doc__, [key for key in keys if not key.is_block]
    for key in keys:
        if key.is_block:
            yield _section(key.name, key.name, key.field.type)
        for name, preset in KINDS.get(key.name, {}).items():
            yield _section(f"{key.name}={name}", key.name, preset)


def _section(title: str, block: str, kind: type) -> tuple[str, str, list[Key]]:
    return title, kind.__doc__, [Key(f"{block}.{field.name}", field) for field in fields(kind)]


def show(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{show(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(show, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
