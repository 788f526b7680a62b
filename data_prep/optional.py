"""Libraries that only some commands need."""

import importlib
from types import ModuleType

from escdiff.errors import UserError


def need(module: str, what: str) -> ModuleType:
    """Import a library of the extra `prep`.

    Raises:
        UserError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = "install it with `pip install 'escdiff[prep]'`"
        raise UserError(f"{what} needs the library {module.split('.')[0]}, which is not installed; {hint}") from error
