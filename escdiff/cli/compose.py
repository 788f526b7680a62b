"""Composing a configuration with Hydra, and its errors as one sentence."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from escdiff.cli.arguments import put_back, set_aside
from escdiff.cli.keys import OVERRIDING, compose_plain, defaults_of, groups_of, options, unknown_key
from escdiff.errors import UserError
from escdiff.places import configs_folder

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
NEAR = 8  # options that an error names, the nearest first


def compose(name: str, overrides: Sequence[str], text_keys: Sequence[str] = ()) -> dict:
    """Compose `configs/{name}.yaml` with overrides; plain dicts, lists and values come back.

    Raises:
        UserError: an unknown key or group option (the nearest one is named), or a value Hydra cannot read.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    texts, rest = set_aside(overrides, text_keys)
    groups = groups_of(name)
    try:
        plain = compose_plain(name, [as_hydra(argument, groups) for argument in rest])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error, name)) from None
    put_back(plain, texts)
    return plain


def as_hydra(argument: str, groups: Mapping[str, str | None]) -> str:
    """An argument as Hydra takes it, which says "~group" where people say "group=null".

    Args:
        groups: of the configuration, see `groups_of`.

    Raises:
        UserError: it is no "key=value", or takes away a group that nothing works without.
    """
    if "=" not in argument[1:] and not argument.startswith("~"):
        raise UserError(f"argument {argument!r} given; expected key=value, see --help for the keys")
    if argument.split("=")[0] == "hydra":
        raise UserError(f"{argument} given; expected one of Hydra's own keys, such as hydra.sweeper.trials=20")
    group = argument.removesuffix("=null").removeprefix("~")
    if group not in groups or argument == group:
        return argument
    if groups[group] is not None and group not in OVERRIDING:
        raise UserError(f"{argument} given; expected {group}= one of {options(group)}")
    return f"~{group}"


def explain(error: Exception, name: str) -> str:
    """One sentence for Hydra's paragraphs."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), list(defaults_of(name)))
    if match := re.search(r"Could not find '(\w+)/([^']+)'", text):
        group, option = match.groups()
        near = difflib.get_close_matches(option, options(group).split(", "), NEAR, cutoff=0)
        return f"{group}={option} given; expected one of {', '.join(near)}; --help lists all of them"
    if "interpolation" in text.lower():
        return f"a value refers to something that is not there ({text}); write \\${{ for a plain ${{"
    if override := getattr(error, "override", None):
        return f"the argument {override!r} could not be read; quote special characters, as in key='\"a,b\"'"
    return text


def door(main: Callable[[list[str]], None], help_text: Callable[[], str]) -> None:
    """Run a command: `--help` at once, a UserError as one sentence with status 2, Ctrl-C with 130."""
    argv = sys.argv[1:]
    if {"--help", "-h", "help"} & set(argv):
        print(help_text())
        return
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def show(*files: str) -> str:
    """The text of config files, comments and all, for `--help`."""
    return "\n".join(f"# configs/{name}\n{(configs_folder() / name).read_text().strip()}\n" for name in files)
