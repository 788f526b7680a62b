"""The keys that a configuration has, and what their values may be: as their defaults are, within `LOWEST`."""

import difflib
from collections.abc import Sequence
from typing import Any

import yaml

from escdiff.errors import UserError
from escdiff.places import configs_folder

OVERRIDING = ("experiment", "debug")  # groups that set keys of the others and add none
ELSEWHERE = ("method", "space", "trainer.devices")  # what these may be, their own classes say
CHOICES = {"data.latents": (None, "auto"), "data.tokens": (None, "auto")}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list, as in [1,2]"}
LOWEST = {  # of numbers; a float's default says that fractions are fine
    "seed": 0, "num_images": 1, "steps": 1, "batch_size": 1, "guidance": 0.0,
    "trainer.max_steps": 0, "trainer.accumulate": 1, "trainer.threads": 1, "trainer.log_steps": 1, "trainer.keep": 1,
    "trainer.num_nodes": 1, "trainer.save_minutes": 0.0, "trainer.save_steps": 1, "trainer.sample_steps": 0,
    "trainer.max_minutes": 0.0, "trainer.max_skips": 0, "trainer.stall_seconds": 0.0,
    "data.batch_size": 1, "data.num_samples": 1, "data.seed": 0, "data.size": 8, "data.num_workers": 0,
    "data.render_workers": 0, "data.cache_gb": 0.0, "data.buffer": 1,
    "optim.lr": 0.0, "optim.warmup": 0, "optim.weight_decay": 0.0, "optim.ema": 0.0, "optim.clip": 0.0,
    "loss.draws": 1, "loss.cells": 0, "loss.pairs_every": 1,
    "hydra.sweeper.trials": 1, "hydra.sweeper.parallel": 1, "hydra.sweeper.seed": 0,
}  # fmt: skip
BEYOND = 2**32  # of any number; no seed reaches it


def groups_of(name: str) -> dict[str, str | None]:
    """Group -> its default, of those that `configs/{name}.yaml` lets one choose from."""
    defaults = yaml.safe_load((configs_folder() / f"{name}.yaml").read_text())["defaults"]
    return {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}


def options(group: str) -> str:
    """The choices of a config group."""
    folder = configs_folder() / group
    return ", ".join(sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")))


def compose_plain(name: str, overrides: Sequence[str] = ()) -> dict:
    """Compose `configs/{name}.yaml` with Hydra's overrides; its errors come as they are."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import get_gh_backup, restore_gh_from_backup
    from omegaconf import OmegaConf

    around = get_gh_backup()  # a sweep's, which a second composition must not disturb
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_folder().absolute()), version_base="1.3"):
            return OmegaConf.to_container(compose(name, overrides=list(overrides)), resolve=True)
    finally:
        restore_gh_from_backup(around)


def defaults_of(name: str, groups: Sequence[str] = ()) -> dict[str, Any]:
    """All dotted keys of a configuration with these groups chosen, as "group=option", and their values."""
    return flatten(compose_plain(name, groups))


def flatten(values: dict, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of parts and of what is in them."""
    found = {}
    for key, value in values.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}.")
    return found


def unknown_key(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == key][:1]
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {key!r}; {hint}--help lists all of them"


def check_keys(name: str, config: dict, overrides: Sequence[str] = ()) -> None:
    """Refuse keys that a configuration and its groups do not have, keys that are gone, and values of another kind.

    Args:
        overrides: those of the command, for the groups it chose.

    Raises:
        UserError: naming the key, and the nearest one that exists, or what its value may be.
    """
    groups = groups_of(name).keys() - set(OVERRIDING)
    defaults = defaults_of(name, [o for o in overrides if "=" in o and o.split("=")[0] in groups])
    given = flatten(config)
    for key in given:
        if key not in defaults:
            raise UserError(unknown_key(key, list(defaults)))
    for key, default in defaults.items():
        if key not in given:
            raise UserError(f"{key} is missing; leave out what removes it")
        if not key.startswith(ELSEWHERE):
            check_value(key, given[key], default)


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuse a value that is not of its default's kind; where that is null, null or what `LOWEST` says will do.

    Raises:
        UserError: says what would do.
    """
    if isinstance(default, dict):
        if not isinstance(value, dict):
            raise UserError(f"{key}={value} given; expected its keys one by one, such as {key}.{next(iter(default))}=")
        return
    if key in CHOICES:
        if value not in CHOICES[key]:
            choices = " or ".join("null" if choice is None else choice for choice in CHOICES[key])
            raise UserError(f"{key}={value} given; expected {choices}")
        return
    kind = type(LOWEST.get(key) if default is None else default)
    if kind is type(None) or (default is None and value is None):
        return
    accepted = {float: int | float, str: str | int | float}.get(kind, kind)
    low = LOWEST.get(key, -BEYOND)
    right = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not right or (kind in (int, float) and not low <= value < BEYOND):
        least = f", {low:g} or more" if key in LOWEST else ""
        raise UserError(f"{key}={value} given; expected {KINDS[kind]}{least}")
