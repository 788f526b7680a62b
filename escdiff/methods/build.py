"""A method from its configuration, which names a class of `escdiff.methods` or one that an installed package gives."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from escdiff.backbone import Backbone
from escdiff.methods.base import Method
from escdiff.support import extensions
from escdiff.support.errors import UserError

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
        return kind(backbone, **options)
    except TypeError as error:
        raise UserError(f"the settings of {kind.__name__} do not fit ({error}); see configs/method") from error


def find_method(target: str) -> type[Method]:
    """The class at a dotted path below `escdiff.methods`, or under a name of the entry points of installed packages.

    Raises:
        UserError: another path or name, or none there.
    """
    added = ", ".join(extensions.names(extensions.METHODS)) or "none are installed"
    expected = f"expected a class below {ROOM.rstrip('.')}, as {ROOM}xti.XTI, or a name that a package gives ({added})"
    kind = extensions.load(extensions.METHODS, target)
    if kind is None and not target.startswith(ROOM):
        raise UserError(f"method._target_={target!r} given; {expected}")
    if kind is None:
        module, _, name = target.rpartition(".")
        try:
            kind = getattr(import_module(module), name, None)
        except ModuleNotFoundError as error:
            raise UserError(f"method._target_={target!r} given, which is not there ({error}); {expected}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method._target_={target!r} given, which is no method; {expected}")
    return kind
