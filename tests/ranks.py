"""A training on several processes of this machine over gloo, as `torchrun` would start them; forked, to be fast."""

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from escdiff.training import run


def start(config, world: int, logs: Path, prepare: Callable[[int], list] = lambda rank: []) -> list[int]:
    """The ids of the processes; `prepare(rank)` runs in each and gives its extra callbacks."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = deepcopy(config)
    config.trainer.strategy, config.trainer.devices = "ddp", world
    return [_fork(config, rank, world, port, logs, prepare) for rank in range(world)]


def _fork(config, rank: int, world: int, port: int, logs: Path, prepare) -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        file = os.open(logs / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        stream = open(file, "w", buffering=1)  # noqa: SIM115
        logging.basicConfig(level=logging.INFO, stream=stream, force=True)
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
            "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        }  # fmt: skip
        rank_zero_only.rank = rank
        run.train(config, prepare(rank))
        status = 0
    except BaseException:
        traceback.print_exc(file=stream)
    finally:
        os._exit(status)


def wait(children: list[int], seconds: float) -> list[int | None]:
    """Exit codes; None for a process that had to be killed after `seconds`."""
    end, codes = time.monotonic() + seconds, {}
    while len(codes) < len(children) and time.monotonic() < end:
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.05)
    for child in set(children) - set(codes):
        os.kill(child, 9)
        os.waitpid(child, 0)
    return [codes.get(child) for child in children]
