"""One progress bar for all long data work: share, rate and time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SAY_EVERY = 30.0  # seconds between lines where there is no terminal


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextmanager
def sample_progress(label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress over `total` samples of which `done` are there already; yields `advance(samples)`.

    On standard error; where that is no terminal, as a line now and then. Nothing is shown where there is nothing to do.
    """
    if not total:  # not `Progress(disable=True)`: rich before 14.3 ends it with an empty line
        yield lambda samples: None
        return
    console = Console(stderr=True, file=sys.stderr)
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    with Progress(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(label, total=total, completed=done)
        last_line = time.monotonic()

        def advance(samples: int) -> None:
            nonlocal last_line
            bar.advance(task, samples)
            if not console.is_terminal and time.monotonic() - last_line > SAY_EVERY:
                last_line = time.monotonic()
                print(f"{label}: {bar.tasks[0].completed:.0f} of {total}", file=sys.stderr, flush=True)

        yield advance
