"""One progress bar for all long data work: share, rate and time left."""

import sys
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


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


@contextmanager
def sample_progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress over `total` samples of which `done` are there already; yields `advance(samples)`.

    On standard error, and only its last state where that is no terminal.
    """
    console = Console(stderr=True, file=sys.stderr)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    with Progress(*columns, console=console, speed_estimate_period=120) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda samples: bar.advance(task, samples)
