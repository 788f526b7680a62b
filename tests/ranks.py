"""A training on several processes of this machine over gloo, as `torchrun` would start them.

They come from a fork server, which has imported everything and done nothing: a process that has run a backward
pass may own threads of autograd, and its forks may not.
"""

import logging
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from multiprocessing.process import BaseProcess
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from escdiff.training.loop import run
from escdiff.training.loop.recipe import RECIPES

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks", "toy_training"])


def start(config, world: int, logs: Path, prepare: Callable[[int], list]) -> list[BaseProcess]:
    """`prepare(rank)` runs in each process and gives its extra callbacks; it must be importable."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = deepcopy(config)
    config.trainer.strategy, config.trainer.devices = "ddp", world
    processes = [CONTEXT.Process(target=_train, args=(config, r, world, port, logs, prepare)) for r in range(world)]
    for process in processes:
        process.start()
    return processes


def _train(config, rank: int, world: int, port: int, logs: Path, prepare) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of the data loader's workers, as anywhere on Linux
    file = os.open(logs / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    stream = open(file, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, stream=stream, force=True)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip
    rank_zero_only.rank = rank
    RECIPES["toy"] = "toy_training:build"
    try:
        run.train(config, prepare(rank))
    except BaseException:
        traceback.print_exc(file=stream)
        os._exit(1)
    os._exit(0)


def wait(processes: list[BaseProcess], seconds: float) -> list[int | None]:
    """Exit codes; None for a process that had to be killed after `seconds`."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    kill(processes)
    return codes


def kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()
