"""The server under load: hostile requests, memory, mixed-up answers, killed workers, and what batching gains.

    python benchmarks/serving.py                       all of it, on the bundled model
    python benchmarks/serving.py --only storm --ray    64 clients on Ray with two replicas
    python benchmarks/serving.py --only gain           batching beside one by one

Starts servers of its own on this machine, asks only them, and ends them. Exits non-zero where a bar is missed: an
answer that is none of the expected ones, a picture that is not the client's own, memory that grows by more than a
tenth, a killed process that is not replaced, or batching that gains less than 1.5 times.
"""

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import psutil
from serving_clients import storm

ROOT = Path(__file__).parents[1]
GROWTH, GAIN = 1.1, 1.5  # the bars
START = 900  # seconds until a server answers
KEYS = {name: f"{name}-{'x' * 20}" for name in ("ann", "bob", "cy", "dan")}


class Server:
    """A server of this machine, in a process of its own."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process, self.address = psutil.Process(process.pid), f"http://127.0.0.1:{port}"

    def workers(self) -> list[psutil.Process]:
        """The processes that hold the models."""
        below = self.process.children(recursive=True)
        on_ray = [p for p in below if p.is_running() and p.name().startswith("ray::ServeRep")]
        spawned = [p for p in below if "spawn_main" in " ".join(_command(p))]
        return on_ray or spawned or [self.process]

    def used(self) -> tuple[float, float]:
        """Megabytes that the workers hold, and seconds of CPU that they spent, which a busy machine changes little."""
        workers = self.workers()
        return sum(p.memory_info().rss for p in workers) / 1e6, sum(sum(p.cpu_times()[:2]) for p in workers)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def server(*options: str) -> Iterator[Server]:
    """Start `escdiff-serve`, wait until it answers, end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"ESCDIFF_API_KEYS": ",".join(f"{name}:{secret}" for name, secret in KEYS.items())}
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "escdiff.serving", "--port", str(port), "--store", store, *options]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | keys | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL
        )  # fmt: skip
        running = Server(process, port)
        try:
            wait_for(running.address, process)
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(address: str, process: subprocess.Popen | None = None, most: float = START) -> None:
    """Until the server answers."""
    end = time.monotonic() + most
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        try:
            if httpx.get(f"{address}/health", timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"no answer from {address} within {most:g} s")


def run_storm(options: argparse.Namespace, flags: list[str]) -> list[str]:
    """Many clients, a tenth of their requests hostile; then a worker is killed. Gives what went wrong."""
    with server("--queue", str(max(options.clients, 8)), *flags) as under:
        outcome = asyncio.run(storm(under.address, KEYS, options.clients, options.requests, options.steps, under.used))
        print(f"{options.requests} requests of {options.clients} clients in {outcome.seconds:.0f} s")
        for answer, count in sorted(outcome.answers.items()):
            print(f"{count:5d}  {answer}")
        early, late = outcome.growth()
        print(f"memory of the workers: {early:.0f} MB in the second fifth, {late:.0f} MB in the last")
        wrong = list(outcome.wrong)
        if late > GROWTH * early:
            wrong.append(f"memory grew from {early:.0f} to {late:.0f} MB")
        return wrong + run_kill(under)


def run_kill(under: Server) -> list[str]:
    """Kill a worker and see whether another takes its place."""
    before = under.workers()
    victim = before[0]
    victim.kill()
    start, end = time.monotonic(), time.monotonic() + START
    while time.monotonic() < end:
        now = under.workers()
        if len(now) == len(before) and victim not in now and {p.pid for p in now} - {p.pid for p in before}:
            break
        time.sleep(0.5)
    else:
        return [f"{len(before)} workers before a kill, {len(under.workers())} after it"]
    wait_for(under.address)
    again = asyncio.run(storm(under.address, KEYS, 4, 20, 1, under.used))
    print(f"a worker was killed: replaced after {time.monotonic() - start:.0f} s with what its models took to be read")
    return list(again.wrong)


def run_gain(options: argparse.Namespace, flags: list[str]) -> list[str]:
    """Paint the same pictures with batching and one by one, by two servers in turns."""
    gains, cpu = [], []
    batched, single = ["--batch", "16", "--wait", "0.1"], ["--batch", "1"]
    with server(*flags, *batched) as together, server(*flags, *single) as alone:
        for _ in range(options.rounds + 1):  # the first warms both up
            slow, fast = (
                asyncio.run(storm(under.address, KEYS, 16, 16 * options.waves, options.steps, under.used, False))
                for under in (alone, together)
            )  # fmt: skip
            if slow.wrong or fast.wrong:
                return [*slow.wrong, *fast.wrong]
            gains.append(slow.seconds / fast.seconds)
            cpu.append(slow.cpu / fast.cpu)
    gain, spent = statistics.median(gains[1:]), statistics.median(cpu[1:])
    shown = ", ".join(f"{gain:.2f}" for gain in gains[1:])
    print(f"16 clients, {options.steps} steps: batching paints {gain:.2f} times as many pictures a second ({shown}), "
          f"{spent:.2f} times as many a second of CPU")  # fmt: skip
    return [] if gain >= GAIN else [f"batching gains {gain:.2f}, less than {GAIN}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = (("clients", 64), ("requests", 500), ("steps", 2), ("rounds", 3), ("waves", 2))
    for name, value in numbers:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=("storm", "gain"))
    parser.add_argument("--ray", action="store_true", help="on Ray with two replicas, else two uvicorn workers")
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--encoder", help="folder of the encoder, else the bundled one")
    options, wrong = parser.parse_args(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end, too
    models = ["--backbone", options.backbone, *(["--encoder", options.encoder] if options.encoder else [])]
    if options.only != "gain":
        kind = ["--ray", "--replicas", "2"] if options.ray else ["--workers", "2"]
        wrong += run_storm(options, kind + models)
    if options.only != "storm":
        wrong += run_gain(options, models)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
