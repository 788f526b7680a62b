"""The outermost layer of commands made with typer: errors and Ctrl-C as one sentence with an exit status."""

import sys
from collections.abc import Callable

from escdiff.support.errors import UserError

STOPPED = 130  # with which typer ends after Ctrl-C, as shells do


def open_door(app: Callable[[], None]) -> None:
    """Run a command that goes on where it was stopped: a UserError is a sentence with status 2, Ctrl-C one with 130."""
    try:
        app()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == STOPPED:
            print("stopped; the same command goes on after what is finished", file=sys.stderr)
        raise
