"""One sentence for Hydra's and OmegaConf's paragraphs."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import is_dataclass

from escdiff.support.config.folder import options
from escdiff.support.config.keys import Key, keys_of

NEAR = 8  # options that an error names, the nearest first


def explain(error: Exception, kind: type) -> str:
    """Say in one sentence the value given, the value expected and the remedy.

    Args:
        kind: the dataclass of the whole configuration.
    """
    keys, text = {key.name: key for key in keys_of(kind)}, " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), list(keys))
    if match := re.search(r"Could not find '(\w+)/([^']+)'", text):
        group, option = match.groups()
        near = difflib.get_close_matches(option, options(group).split(", "), NEAR, cutoff=0)
        return f"{group}={option} given; expected one of {', '.join(near)}; --help lists all of them"
    if "interpolation" in text.lower():
        return f"a value refers to something that is not there ({text}); write \\${{ for a plain ${{"
    if (cause := _of_key(error)) is not None:
        prefix = f"configs/{match.group(1)}.yaml: " if (match := re.match(r"In '([^']+)'", text)) else ""
        return prefix + _refused(cause, keys)
    if override := getattr(error, "override", None):
        return f"the argument {override!r} could not be read; quote special characters, as in key='\"a,b\"'"
    return text


def _of_key(error: BaseException | None):
    """OmegaConf's error about a key, among the causes of Hydra's."""
    while error is not None and not getattr(error, "full_key", None):
        error = error.__cause__ or error.__context__  # Hydra states no cause for what is wrong in a file
    return error


def _refused(cause, keys: dict[str, Key]) -> str:
    """The sentence about a value of the wrong type or an unknown key."""
    name, kind = cause.full_key, cause.object_type
    block, last = re.fullmatch(r"(.*?)\W?(\w+)\]?", name).groups()
    if is_dataclass(kind) and (field := kind.__dataclass_fields__.get(last)):
        return str(Key(name, field).refuse(cause.value))
    if block in keys and not keys[block].is_block:  # a dict or list of values of one type, such as encoder.tokens
        return f"{name}={cause.value} given; expected {keys[block].expected_within}"
    return unknown_key(name, list(keys))


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """The sentence about a key that nothing reads, with the nearest known one."""
    near = difflib.get_close_matches(key, keys, 1, 0.5) or [k for k in keys if k.split(".")[-1] == key][:1]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key!r}; {hint}--help lists all of them"
