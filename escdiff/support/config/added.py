"""Additions of installed packages to the command line: `method=NAME`, and `loss.NAME=WEIGHT`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any

from escdiff.support import extensions
from escdiff.support.config.loss import LossConfig

PRESET = {  # as configs/method/ti.yaml; a class may say otherwise in its own `preset`
    "optim": {"lr": 5e-3, "warmup": 0, "weight_decay": 0.0, "ema": 0}, "loss": {"high_noise_bias": 0.0},
    "data": {"batch_size": 8}, "trainer": {"max_steps": 500, "sample_steps": 0},
}  # fmt: skip


def method_presets(overrides: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, preset) of the methods that overrides choose and that packages give."""
    chosen = [override.partition("=")[2].split(",") for override in overrides if override.startswith("method=")]
    names = {name.strip() for part in chosen for name in part}
    for name in sorted(names.intersection(extensions.names(extensions.METHODS))) if names else ():
        yield name, method_preset(name)


def method_preset(name: str) -> dict[str, Any]:
    """The counterpart of `configs/method/NAME.yaml` for a package's method: its arguments with their defaults."""
    kind = extensions.load(extensions.METHODS, name)
    keys = {"_target_": name}
    for argument in signature(kind).parameters.values():
        if argument.name != "backbone" and argument.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
            keys[argument.name] = "???" if argument.default is Parameter.empty else argument.default
    return {**PRESET, **getattr(kind, "preset", {}), "recipe": "method", "run_id": name, "method": keys}


def added_term(argument: str) -> str | None:
    """`loss.NAME=WEIGHT` of a package's term, as the key that holds such weights; None for any other argument."""
    key, _, weight = argument.partition("=")
    block, _, name = key.lstrip("+").partition(".")
    if block != "loss" or name in {field.name for field in fields(LossConfig)} or "." in name:
        return None
    return f"++loss.terms.{name}={weight}" if name in extensions.names(extensions.LOSSES) else None
