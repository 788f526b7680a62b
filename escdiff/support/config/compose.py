"""From a command line and the presets of `configs/` to a configuration, or to one sentence on what is wrong."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from escdiff.support.config.added import added_term, method_presets
from escdiff.support.config.control import KINDS
from escdiff.support.config.explain import explain, unknown_key
from escdiff.support.config.folder import configs_folder, groups_of, options
from escdiff.support.config.infer import InferConfig
from escdiff.support.config.keys import check, keys_of
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
DOORS = {"train": TrainConfig, "infer": InferConfig}
GONE = (("encoder", "placement"),)  # of earlier versions' config.yaml; nothing reads them any more
OVERRIDING = ("experiment", "debug")  # groups that may be taken away


def compose(door: str, arguments: Sequence[str] = ()) -> Any:
    """The configuration of `python train.py` or `python infer.py` with the arguments of a command line.

    Args:
        door: "train" gives a `TrainConfig`, "infer" an `InferConfig`.

    Raises:
        UserError: an unknown key or group option (the nearest one is named), or a value that its key cannot have.
    """
    texts, rest = set_aside(arguments, verbatim_keys(door))
    groups = groups_of(door)
    return compose_overrides(door, [as_hydra(argument, groups) for argument in rest], texts)


def compose_overrides(door: str, overrides: Sequence[str], values: Mapping[str, Any] | None = None) -> Any:
    """`compose` for overrides in Hydra's own grammar, and for values by key that are taken as they are."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    kind = DOORS[door]
    try:
        check_overrides(kind, overrides)
        raw = _hydra(door, [*_backbone_of(overrides), *overrides])
        for name, value in (values or {}).items():
            OmegaConf.update(raw, name, _literal(value))
        config = OmegaConf.to_object(raw)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(explain(error, kind)) from None
    except AssertionError as error:  # Hydra's, where a key lies in a block that is null
        raise _without_group(kind, overrides) or error from None
    check(config)
    return config


def read(door: str, values: Mapping[str, Any]) -> Any:
    """The configuration that a run folder's config.yaml holds, of this version or an earlier one.

    Raises:
        UserError: a key that is not known, or a value that it cannot have.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = OmegaConf.to_container(OmegaConf.create(dict(values)))
    for block, key in GONE:
        (values.get(block) or {}).pop(key, None)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DOORS[door]), values))
    except OmegaConfBaseException as error:
        raise UserError(explain(error, DOORS[door])) from None
    check(config)
    return config


def register(overrides: Sequence[str] = ()) -> None:
    """Make the dataclasses known to Hydra, by the names that the files in `configs/` give in their defaults.

    Args:
        overrides: whose `method=NAME` may be of an installed package.
    """
    from hydra.core.config_store import ConfigStore

    _register_own()
    for name, preset in method_presets(overrides):
        ConfigStore.instance().store(group="method", name=name, node=preset, package="_global_")


@cache  # a quarter of a composition's time
def _register_own() -> None:
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for door, kind in DOORS.items():
        store.store(name=f"{door}_keys", node=kind)
    for group, kinds in KINDS.items():
        for name, kind in kinds.items():
            store.store(group=group, name=f"{name}_keys", node=kind)


def _backbone_of(overrides: Sequence[str]) -> list[str]:
    """The backbone in whose folder the experiment lies, where none is given: its recipe is for no other."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    name = given.get("experiment", "").split("/")[0]
    return [f"backbone={name}"] if name in options("backbone").split(", ") and "backbone" not in given else []


def _hydra(door: str, overrides: Sequence[str]):
    """Hydra's composition: what the chosen groups give is composed once, and plain values are set in a copy of it.

    Anything else, a value that does not fit included, goes the whole way through Hydra, which says what is wrong.
    """
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups, chosen, values = groups_of(door), [], []
    for override in parsed(overrides):
        if override.type != OverrideType.CHANGE or override.is_sweep_override() or override.is_hydra_override():
            return _whole(door, overrides)
        (chosen if override.key_or_group in groups else values).append(override)
    if any(method_presets(overrides)) or any(override.package for override in values):
        return _whole(door, overrides)
    config = copy.deepcopy(_of_groups(door, tuple(each.input_line for each in chosen), configs_folder()))
    try:
        for each in values:
            OmegaConf.update(config, each.key_or_group, each.value(), merge=True)
    except (OmegaConfBaseException, AssertionError):
        return _whole(door, overrides)
    return config


@cache  # a fifth of a second; comparisons compose for every concept, and tests by the thousand
def _of_groups(door: str, overrides: tuple[str, ...], _folder: Path):  # of other presets it is another one
    return _whole(door, overrides)


def _whole(door: str, overrides: Sequence[str]):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.initialize import get_gh_backup, restore_gh_from_backup

    register(overrides)
    around = get_gh_backup()  # a sweep's, which a second composition must not disturb
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_folder().absolute()), version_base="1.3"):
            return compose(door, overrides=list(overrides))
    finally:
        restore_gh_from_backup(around)


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
    if term := added_term(argument):
        return term
    group = argument.removesuffix("=null").removeprefix("~")
    if group not in groups or argument == group:
        return argument
    if groups[group] is not None and group not in OVERRIDING:
        raise UserError(f"{argument} given; expected {group}= one of {options(group)}")
    return f"~{group}"


def verbatim_keys(door: str) -> dict[str, str]:
    """Prefix that people type before a text or path -> its key; a text for a whole block is the block's name."""
    return {
        key.name: f"{key.name}.name" if key.is_block else key.name
        for key in keys_of(DOORS[door]) if key.field.metadata["verbatim"]
    }  # fmt: skip


def set_aside(arguments: Sequence[str], text_keys: Mapping[str, str]) -> tuple[dict[str, str | None], list[str]]:
    """Split arguments into texts, key -> value as typed, and the rest for Hydra.

    Hydra's override grammar gives commas, brackets, quotes, `=` and `$` a meaning of its own, which a prompt or a path
    does not have. Of a key given twice the last wins, as in Hydra; an empty text or "null" means none.
    """
    texts: dict[str, str | None] = {}
    rest: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.strip() in text_keys:
            texts[text_keys[key.strip()]] = None if value in ("", "null") else value
        else:
            rest.append(argument)
    return texts, rest


def check_overrides(kind: type, overrides: Sequence[str]) -> None:
    """Refuse what Hydra and OmegaConf would let pass.

    Raises:
        UserError: a key that is added and that nothing reads, one that is taken away, or a number for true or false.
    """
    keys = {key.name: key for key in keys_of(kind)}
    for override in parsed(overrides):
        name = override.key_or_group
        holder = keys.get(name.rpartition(".")[0])
        free = holder is not None and holder.default == {}
        if override.is_add() and name not in keys and not free and not name.startswith("hydra."):
            raise UserError(unknown_key(name, list(keys)))
        if override.is_delete() and name in keys and not keys[name].is_group:
            raise UserError(f"{override.input_line} given; leave it out, since {name} must have a value")
        if name in keys and keys[name].field.type is bool and not isinstance(override.value(), bool):
            raise keys[name].refuse(override.value())


def parsed(overrides: Sequence[str]) -> list[Any]:
    """Overrides as Hydra's grammar reads them, each an `Override`.

    Raises:
        hydra.errors.HydraException: one that it cannot read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(list(overrides))


def _without_group(kind: type, overrides: Sequence[str]) -> UserError | None:
    """The error about a key of a group of which nothing was chosen, such as method.init=mug without method=."""
    groups = [key.name for key in keys_of(kind) if key.is_group]
    for override in overrides:
        if (group := override.split(".")[0]) in groups:
            return UserError(f"{override} given without {group}=; expected one of {options(group)} there")
    return None


def _literal(value: Any) -> Any:
    """A value that OmegaConf takes as it is: no interpolation starts in a text."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
