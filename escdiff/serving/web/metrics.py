"""Metrics of a server for Prometheus (https://prometheus.io): `GET /metrics`.

With several worker processes, `PROMETHEUS_MULTIPROC_DIR` names the folder in which prometheus_client adds them up.
"""

import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The figures of one process.

    Attributes:
        requests: by route, method and status. seconds: of a request, by route.
        batch_size, batch_seconds: of what was painted. waiting: pictures in the queue.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "escdiff_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "escdiff_request_seconds", "Seconds a request took.", ["route"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "escdiff_batch_size", "Pictures painted together.", buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "escdiff_batch_seconds", "Seconds a batch took.", buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge("escdiff_waiting", "Pictures that wait.", multiprocess_mode="livesum", registry=registry)
        if FOLDER in os.environ:
            _forget_dead(Path(os.environ[FOLDER]))
        else:
            ProcessCollector(registry=registry)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, method, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def painted(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format, of all processes where there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


def _forget_dead(folder: Path) -> None:
    """What killed workers had waiting waits no more; where a process can be asked for without harm."""
    if os.name != "posix":
        return
    for file in folder.glob("gauge_livesum_*.db"):
        process = int(file.stem.rpartition("_")[2])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was faster
                mark_process_dead(process)
        except PermissionError:
            continue
