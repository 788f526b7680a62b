"""A command's outermost layer: help, and errors as one sentence with an exit status."""

import sys
from collections.abc import Callable

from escdiff.support.errors import UserError


def door(main: Callable[[list[str]], None], help_text: Callable[[], str]) -> None:
    """Run a command: `--help` at once, a UserError as one sentence with status 2, Ctrl-C with 130."""
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what the terminal's encoding cannot say
        stream.reconfigure(errors="backslashreplace")
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
