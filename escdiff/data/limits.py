"""What a picture that nobody vouches for may cost: pixels, bytes and seconds."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from escdiff.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Of one picture; what exceeds them is refused before it costs more."""

    max_pixels: int = 64_000_000
    max_bytes: int = 200_000_000  # of the file
    seconds: float = 5.0  # to decode and convert it


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise UserError in the block when it takes longer; 0 means no limit.

    Works in the main thread of a process, where signals arrive (elsewhere it does nothing), and between steps
    of a decoder: one that never comes back from C is the business of whoever watches the process.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal, _frame):
        raise UserError(f"{what} took longer than {seconds:g} s; leave it out or raise the limit")

    before = signal.signal(signal.SIGALRM, stop)
    # It repeats, since a library may swallow the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
