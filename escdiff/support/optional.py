"""Libraries that only some commands need."""

import importlib
from types import ModuleType

from escdiff.support.errors import UserError


def need(module: str, feature: str, extra: str = "prep") -> ModuleType:
    """Import a library of an extra.

    Raises:
        UserError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"install it with `pip install 'escdiff[{extra}]'`"
        raise UserError(
            f"{feature} needs the library {module.split('.')[0]}, which is not installed; {hint}"
        ) from error
