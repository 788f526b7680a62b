"""A method from its configuration. Only classes of `escdiff.methods` can be named there."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from escdiff.backbone import Backbone
from escdiff.errors import UserError
from escdiff.methods.base import Method

ROOM = "escdiff.methods."


def make_method(settings: Mapping[str, Any], backbone: Backbone) -> Method:
    """Build `settings["_target_"]` over a backbone, the other settings being its keyword arguments.

    Raises:
        UserError: no such class, one that is no method, a key that it does not take or a required one missing.
    """
    options = dict(settings)
    kind = find_method(str(options.pop("_target_", "")))
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "backbone")]
    for key in options:
        if key not in known:
            raise UserError(f"unknown key method.{key} given; {kind.__name__} takes {', '.join(known)}")
    try:
        return kind(backbone, **{key: _plain(value) for key, value in options.items()})
    except TypeError as error:
        raise UserError(f"the settings of {kind.__name__} do not fit ({error}); see configs/method") from error


def find_method(target: str) -> type[Method]:
    """The class at a dotted path below `escdiff.methods`.

    Raises:
        UserError: another path, or none there.
    """
    expected = f"expected a class below {ROOM.rstrip('.')}, as {ROOM}xti.XTI"
    if not target.startswith(ROOM):
        raise UserError(f"method._target_={target!r} given; {expected}")
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UserError(f"method._target_={target!r} given, which is not there ({error}); {expected}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method._target_={target!r} given, which is no method; {expected}")
    return kind


def _plain(value: Any) -> Any:
    """Dicts for the namespaces that the door makes of them."""
    if hasattr(value, "__dict__") and not isinstance(value, type):
        value = vars(value)
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value
