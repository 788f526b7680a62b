"""One key of a configuration, and what its value may be: the type of its field, and the bounds given to `key`."""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from escdiff.support.errors import UserError

BEYOND = 2**32  # of any number; no seed reaches it
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list, as in [1,2]",
         dict: "its keys one by one", Any: "a value"}  # fmt: skip


def key(
    default: Any, help: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = (),
    verbatim: bool = False,
) -> Any:  # fmt: skip
    """The field of one key, in a dataclass that is a block of the configuration.

    Args:
        help: one line, for `--help` and the reference.
        low, high: bounds of a number, both included. choices: what a text may be.
        verbatim: a text or path that people type as it is, which Hydra's grammar must not read.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "verbatim": verbatim}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def block(kind: type, verbatim: bool = False) -> Any:
    """The field of a block within another; a text typed for a `verbatim` block is the block's name."""
    return field(default_factory=kind, metadata={"verbatim": verbatim})


def leaves(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of all that is no dict."""
    values = {}
    for name, value in config.items():
        values |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


@dataclass(frozen=True)
class Key:
    """A key with its dotted name."""

    name: str
    field: Field

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Alternatives of its type; containers without their items' types, `NoneType` for null."""
        kind = self.field.type
        members = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        return tuple(get_origin(member) or member for member in members)

    @property
    def default(self) -> Any:
        return self.field.default if self.field.default is not MISSING else self.field.default_factory()

    @property
    def help(self) -> str:
        return self.field.metadata["help"]

    @property
    def is_block(self) -> bool:
        return is_dataclass(self.field.type)

    @property
    def is_group(self) -> bool:
        """Whether it is a block that is there if one of its group was chosen."""
        return self.field.default is None and any(kind is dict or is_dataclass(kind) for kind in self.kinds)

    @property
    def expected(self) -> str:
        """Its allowed values, in words."""
        if self.is_block:
            return f"its keys one by one, such as {self.name}.{fields(self.field.type)[0].name}="
        if self.is_group:
            return "null or a preset of the group"
        limits, words = self.field.metadata, ["null"] if NoneType in self.kinds else []
        words += limits["choices"]
        for kind in self.kinds:
            if kind is not NoneType and not (kind is str and limits["choices"]):
                words.append(KINDS[kind] + (self._bounds if kind in (int, float) else ""))
        return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]

    @property
    def expected_within(self) -> str:
        """Allowed values of an item of this dict or list, in words."""
        kind = get_args(self.field.type)[-1]
        return KINDS[get_origin(kind) or kind]

    @property
    def _bounds(self) -> str:
        low, high = self.field.metadata["low"], self.field.metadata["high"]
        if high is not None:
            return f" from {low:g} to {high:g}"
        return "" if low is None else f", {low:g} or more"

    def refuse(self, value: Any) -> UserError:
        """The error about a value that it cannot have."""
        return UserError(f"{self.name}={value} given; expected {self.expected}")

    def check(self, value: Any) -> None:
        """Refuse a value of the right type that is out of bounds.

        Raises:
            UserError: names the key, the value and what would do.
        """
        limits = self.field.metadata
        if isinstance(value, str) and limits["choices"] and value not in limits["choices"]:
            raise self.refuse(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            low = -BEYOND if limits["low"] is None else limits["low"]
            high = BEYOND - 1 if limits["high"] is None else limits["high"]
            if math.isnan(value) or not low <= value <= high:
                raise self.refuse(value)
        if isinstance(value, dict) and self.default and value.keys() != self.default.keys():
            raise UserError(f"{self.name}={value} given; expected the keys {', '.join(self.default)}")


def keys_of(kind: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a block, those of the blocks within behind their block."""
    for entry in fields(kind):
        key = Key(prefix + entry.name, entry)
        yield key
        if key.is_block:
            yield from keys_of(entry.type, f"{key.name}.")


def check(config: Any, prefix: str = "") -> None:
    """Refuse a configuration with a value out of bounds.

    Raises:
        UserError: about the first.
    """
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            check(value, f"{prefix}{entry.name}.")
        else:
            Key(prefix + entry.name, entry).check(value)
