"""`escdiff-serve`: concepts and pictures over HTTP, for this machine unless told otherwise."""

import os
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from escdiff.support.errors import UserError
from escdiff.support.files import make_folder

LOOPBACK = "127.0.0.1"
LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
CONNECTIONS = 1000  # at once; more are told to come back
GRACE = 10  # seconds that open requests have when the server stops
SILENT = 30  # seconds after which a worker that does not react is replaced


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; other than this machine's own needs API keys.")]
    = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    backbone: Annotated[str, typer.Option(help="mini, sd15, a diffusers folder or a hub id.")] = "mini",
    encoder: Annotated[str | None, typer.Option(help="Folder or hub id of the encoder; else the bundled one.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="For those who name none; else the backbone's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
    store: Annotated[Path | None, typer.Option(help="Folder of the concepts; else they end with the server.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the models; of two and more, those that "
                                                     "die are replaced.")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more are told to come back.")] = 64,
    share: Annotated[int | None, typer.Option(min=1, help="Of them, of one API key; else all.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures painted together.")] = 8,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for others to paint together.")] = 0.02,
    seconds: Annotated[float, typer.Option(min=1, help="That a picture may take, waiting included.")] = 600.0,
    steps: Annotated[int, typer.Option(min=1, help="The most that may be asked for.")] = 100,
    side: Annotated[int | None, typer.Option(min=8, help="Pixels of the largest side; else twice the backbone's.")]
    = None,
    concepts: Annotated[int, typer.Option(min=1, help="That one API key may keep.")] = 1000,
    ray: Annotated[bool, typer.Option("--ray", help="Serve by Ray Serve, on the cluster of RAY_ADDRESS or here.")]
    = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: how many, over all its machines.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: of each replica; 0 for CPUs.")] = 0.0,
) -> None:  # fmt: skip
    """Concepts and pictures over HTTP; see http://HOST:PORT/docs. API keys: ESCDIFF_API_KEYS=NAME:SECRET,..."""
    if missing := [library for library in LIBRARIES if find_spec(library) is None]:
        raise UserError(f"the server needs {', '.join(missing)}; pip install 'escdiff[serve]'")
    from escdiff.serving.limits import Limits
    from escdiff.serving.settings import Settings
    from escdiff.serving.web.keys import KEYS, MAKE_ONE, is_own, read_keys

    owners = read_keys(os.environ)
    if not owners and not is_own(host):
        raise UserError(
            f"--host is {host}, which lets other machines in, but there are no API keys; set {KEYS}=NAME:SECRET "
            f"({MAKE_ONE}), or leave --host out"
        )
    limits = Limits(
        queue=queue, share=share or queue, batch=batch, wait=wait, seconds=seconds, steps=steps, side=side,
        concepts=concepts,
    )  # fmt: skip
    with ExitStack() as stack:
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="escdiff-serve-")))
        make_folder(folder, "--store")
        settings = Settings(str(folder.absolute()), backbone, encoder, guidance, device, dtype, owners, limits)
        settings.check()
        if ray:
            run_ray(settings, host, port, replicas, gpus)
            return
        if workers > 1:
            from escdiff.serving.web.metrics import FOLDER

            os.environ[FOLDER] = stack.enter_context(tempfile.TemporaryDirectory(prefix="escdiff-metrics-"))
        run_uvicorn(settings, host, port, workers)


def run_uvicorn(settings, host: str, port: int, workers: int) -> None:
    """Serve until a signal comes. uvicorn watches over several workers and replaces those that die."""
    import uvicorn

    os.environ.update(settings.to_environment())
    print(f"http://{host}:{port}/docs as soon as the models are read (Ctrl-C stops it)", flush=True)
    uvicorn.run(
        "escdiff.serving.web.app:from_environment", factory=True, host=host, port=port, workers=workers,
        log_level="warning", access_log=False, server_header=False, limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE, timeout_worker_healthcheck=SILENT,
    )  # fmt: skip


def run_ray(settings, host: str, port: int, replicas: int, gpus: float) -> None:
    """Serve on Ray until a signal comes."""
    from escdiff.serving.on_ray import deploy, stop

    ended = threading.Event()
    deploy(settings, host, port, replicas, gpus)
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: ended.set())
    print(f"http://{host}:{port}/docs, {replicas} replicas (Ctrl-C stops it)", flush=True)
    ended.wait()
    stop()


def main() -> None:
    """The door `python -m escdiff.serving`."""
    try:
        typer.run(serve)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
