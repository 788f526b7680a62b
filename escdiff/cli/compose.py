"""Composing a configuration with Hydra, and its errors as one sentence."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence

import yaml

from escdiff.cli.arguments import put_back, set_aside
from escdiff.errors import UserError
from escdiff.places import configs_folder

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
NEAR = 8  # options that an error names, the nearest first
OVERRIDING = ("experiment", "debug")  # groups that set keys of the others and add none


def compose(name: str, overrides: Sequence[str], text_keys: Sequence[str] = ()) -> dict:
    """Compose `configs/{name}.yaml` with overrides; plain dicts, lists and values come back.

    Raises:
        UserError: an unknown key or group option (the nearest one is named), or a value Hydra cannot read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    texts, rest = set_aside(overrides, text_keys)
    for argument in rest:
        if "=" not in argument and not argument.startswith("~"):
            raise UserError(f"argument {argument!r} given; expected key=value, see --help for the keys")
    # Hydra says "~group" where people say "group=null".
    rest = [f"~{a[:-5]}" if a.endswith("=null") and a[:-5] in groups_of(name) else a for a in rest]
    try:
        with initialize_config_dir(str(configs_folder().absolute()), version_base="1.3"):
            config = hydra_compose(name, overrides=rest)
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from None
    put_back(plain, texts)
    return plain


def explain(error: Exception, name: str) -> str:
    """One sentence for Hydra's paragraphs."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), known_keys(name))
    if match := re.search(r"Could not find '(\w+)/([^']+)'", text):
        group, option = match.groups()
        near = difflib.get_close_matches(option, options(group).split(", "), NEAR, cutoff=0)
        return f"{group}={option} given; expected one of {', '.join(near)}; --help lists all of them"
    if "interpolation" in text.lower():
        return f"a value refers to something that is not there ({text}); write \\${{ for a plain ${{"
    if override := getattr(error, "override", None):
        return f"the argument {override!r} could not be read; quote special characters, as in key='\"a,b\"'"
    return text


def groups_of(name: str) -> set[str]:
    """The groups that `configs/{name}.yaml` lets one choose from; another folder of configs may share a key's name."""
    defaults = yaml.safe_load((configs_folder() / f"{name}.yaml").read_text())["defaults"]
    return {group for entry in defaults if isinstance(entry, dict) for group in entry}


def known_keys(name: str, groups: Sequence[str] = ()) -> list[str]:
    """All dotted keys of a configuration with these groups chosen, as "group=option"."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(configs_folder().absolute()), version_base="1.3"):
        return flatten(OmegaConf.to_container(hydra_compose(name, overrides=list(groups))))


def flatten(values: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += flatten(value, f"{prefix}{key}.")
    return keys


def unknown_key(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == key][:1]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key!r}; {hint}--help lists all of them"


def reject_unknown(name: str, config: dict, overrides: Sequence[str] = (), but: Sequence[str] = ()) -> None:
    """Refuse what `+key=value` or an experiment file added to the keys that a configuration and its groups have.

    Args:
        overrides: those of the command, for the groups it chose.
        but: dotted prefixes that somebody else judges.

    Raises:
        UserError: naming the key, and the nearest one that exists.
    """
    groups = groups_of(name) - set(OVERRIDING)
    known = known_keys(name, [o for o in overrides if "=" in o and o.split("=")[0] in groups])
    for key in flatten(config):
        if key not in known and not key.startswith(tuple(but)):
            raise UserError(unknown_key(key, known))


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


def options(group: str) -> str:
    """The choices of a config group."""
    folder = configs_folder() / group
    return ", ".join(sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")))
