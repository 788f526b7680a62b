"""Limits for pictures of unknown origin: pixels, bytes and seconds."""

import ctypes
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from escdiff.support.errors import UserError

REPEAT, REPEATS = 1.0, 30  # seconds after which a limit that was passed over stops again, and how often


@dataclass(frozen=True)
class Limits:
    """Of one picture; what exceeds them is refused before it costs more."""

    max_pixels: int = 64_000_000
    max_bytes: int = 200_000_000  # of the file
    seconds: float = 5.0  # to decode and convert it


@contextmanager
def time_limit(seconds: float, task: str) -> Iterator[None]:
    """Raise UserError in the block when it takes longer; 0 means no limit.

    Works between steps of a decoder: one that never comes back from C is the business of whoever watches the process.
    A signal also ends a call of the system; where there is none (Windows, threads), Python's own way to raise in
    another thread takes its place.
    """
    if not seconds:
        yield
        return
    signals = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    message = f"{task} took longer than {seconds:g} s; leave it out or raise the limit"
    with _by_signal(seconds, message) if signals else _by_thread(seconds, message):
        yield


@contextmanager
def _by_signal(seconds: float, late: str) -> Iterator[None]:
    def stop(_signal, _frame):
        raise UserError(late)

    before = signal.signal(signal.SIGALRM, stop)
    # It repeats, since a library may swallow the first one.
    signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _by_thread(seconds: float, late: str) -> Iterator[None]:
    class Late(UserError):
        """A thread takes a class to raise, hence one that knows its sentence."""

        def __init__(self) -> None:
            super().__init__(late)

    watched, over, lock = threading.get_ident(), threading.Event(), threading.Lock()

    def watch() -> None:
        wait = seconds
        for _ in range(REPEATS):
            if over.wait(wait):
                return
            wait = REPEAT
            with lock:
                if not over.is_set():
                    _raise_in(watched, Late)

    try:
        try:
            threading.Thread(target=watch, daemon=True).start()
            yield
        finally:
            with lock:  # behind it nothing more is raised
                over.set()
    finally:  # once more, since the exception may have arrived in the lines above and cut them short
        over.set()
        _raise_in(watched, None)  # what has not arrived is taken back


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise `error` in a thread between two of its steps; None takes back what has not arrived."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)
