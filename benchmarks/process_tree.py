"""Seconds and memory of a command with all processes that it starts. Linux only."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Usage:
    """Seconds, and bytes at their highest.

    Attributes:
        pss: of the whole tree at one time; what processes share is counted once (proportional set size).
        largest: PSS of its largest process. rss: resident set of its largest process, with all it shares.
        first: seconds until `done` said yes the first time; with the CPU seconds spent by then.
    """

    wall: float = 0.0
    cpu: float = 0.0
    pss: int = 0
    largest: int = 0
    rss: int = 0
    first: tuple[float, float] | None = None
    failed: bool = False
    log: Path = field(default_factory=Path)


def measure(command: Sequence[str], log: Path, done: Callable[[], bool] = lambda: False, pause: float = 0.2) -> Usage:
    """Run a command to its end, its output in `log`, looking at it every `pause` seconds."""
    usage, start = Usage(log=log), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(pause):
                pids = tree(process.pid)
                sizes = [bytes_of(pid, "smaps_rollup", "Pss:") for pid in pids]
                usage.pss, usage.largest = max(usage.pss, sum(sizes)), max(usage.largest, *sizes)
                usage.rss = max(usage.rss, *(bytes_of(pid, "status", "VmHWM:") for pid in pids))
                if usage.first is None and done():
                    usage.first = time.monotonic() - start, cpu_seconds(process.pid)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        _, status, spent = os.wait4(process.pid, 0)
        over.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    usage.wall, usage.cpu = time.monotonic() - start, spent.ru_utime + spent.ru_stime
    usage.failed = process.returncode != 0  # spent.ru_maxrss is no use: it starts from this process's own
    return usage


def tree(pid: int) -> list[int]:
    """A process and all that come from it."""
    try:
        lists = [path.read_text(encoding="utf-8") for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return [pid]
    return [pid, *(descendant for child in " ".join(lists).split() for descendant in tree(int(child)))]


def bytes_of(pid: int, file: str, name: str) -> int:
    """A line of a file below /proc/PID; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def cpu_seconds(pid: int) -> float:
    """Of a process and its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
