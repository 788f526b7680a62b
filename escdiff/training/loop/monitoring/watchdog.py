"""Ends every process of a run when one of them died or stalls, and says which.

Left alone, the others wait in a collective until its time limit (half an hour for gloo, ten minutes for NCCL) and
then say that it was exceeded, not by whom.
"""

import logging
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import lightning as L
from torch.distributed import TCPStore

BEAT = 2.0  # seconds between heartbeats
SILENCE = 20.0  # seconds without one after which a rank counts as dead
PATIENT = 10  # so much longer is waited before the first step is done, and in the phases of `SLOW`
SLOW = ("saving", "compiling", "starting", "validating")  # how those phases begin
FAILED = "failed"
log = logging.getLogger(__name__)


class RankWatch(L.Callback):
    """Every rank's thread tells the others through a store, apart from the training's own messages, how far it is.

    A rank without heartbeats is dead (or stopped). When no rank has moved for `seconds`, those that are least far
    hold up the others. A rank that fails by itself says so. Nothing runs on a single process.

    Place it first among the callbacks.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.marks, self.phase, self.steps, self.compiled = 0, "starting", 0, 0
        self._stop = threading.Event()
        self._store: TCPStore | None = None
        self._thread: threading.Thread | None = None

    def mark(self, phase: str) -> None:
        """Say that this rank has come so far."""
        self.marks, self.phase = self.marks + 1, phase

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size < 2:
            return
        self.rank, self.world = trainer.global_rank, trainer.world_size
        address = trainer.strategy.cluster_environment.main_address
        limit = timedelta(seconds=SILENCE / 2)
        if self.rank == 0:
            self._store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=limit)
            self._store.set(FAILED, "")
        port = trainer.strategy.broadcast(self._store.port if self.rank == 0 else None)
        try:
            self._store = self._store or TCPStore(address, port, is_master=False, timeout=limit)
        except Exception as error:
            log.warning("rank %d cannot reach port %d of %s: %s", self.rank, port, address, error)
        if not trainer.strategy.reduce_boolean_decision(self._store is not None, all=True):
            log.warning("no rank watches over the others")
            return
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        from torch._dynamo.callback import callback_handler  # a second's import, which one process alone is spared

        callback_handler.register_start_callback(self._compiling)

    def _compiling(self, *_: Any) -> None:
        self.compiled += 1
        self.phase = f"compiling {self.compiled}"  # no mark: ranks may compile unequally often

    def _end_listening(self) -> None:
        from torch._dynamo.callback import callback_handler

        if self._compiling in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._compiling)

    def on_train_epoch_start(self, *_: Any) -> None:
        self.mark("starting an epoch")  # whose first shards may have to be fetched

    def on_train_batch_start(self, *_: Any) -> None:
        self.mark("forward pass")

    def on_before_backward(self, *_: Any) -> None:
        self.mark("backward pass")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.mark("optimizer's step")

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1
        self.mark("saving or painting")

    def on_train_end(self, *_: Any) -> None:
        self._stop.set()
        if self._thread is not None:
            self._end_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say why before leaving; a failed collective is somebody else's doing, which the thread finds out."""
        if self._thread is None:
            return
        self._end_listening()
        if is_of_others(exception):
            self._thread.join(self.seconds)
        else:
            self._fail(f"rank {self.rank} ({socket.gethostname()}) failed: {type(exception).__name__}: {exception}")
            self._stop.set()
            time.sleep(2 * BEAT * (self.rank == 0))  # its store must be read by the others

    def _watch(self) -> None:
        heard = {rank: ("", time.monotonic()) for rank in range(self.world)}  # newest word of each, and when it came
        moved, places, beat = time.monotonic(), {}, 0
        while not self._stop.wait(BEAT):
            beat += 1
            try:
                self._store.set(f"rank{self.rank}", f"{beat}|{self.marks}|{self.steps}|{self.phase}")
                if reason := self._store.get(FAILED).decode():
                    return self._end(reason)
                there = [r for r in range(self.world) if self._store.check([f"rank{r}"])]
                words = dict(zip(there, self._store.multi_get([f"rank{r}" for r in there]), strict=True))
            except Exception as error:  # whatever a broken connection leads to
                if self._stop.is_set():
                    return None
                return self._end(f"rank 0 died or hangs: its store does not answer ({type(error).__name__})")
            now = time.monotonic()
            heard.update({r: (word.decode(), now) for r, word in words.items() if word.decode() != heard[r][0]})
            for rank, (_, when) in heard.items():
                if now - when > SILENCE:
                    return self._end(f"rank {rank} died or hangs: silent for {now - when:.0f} s", tell=True)
            found = {r: word.split("|")[1:] for r, (word, _) in heard.items() if word}
            if found != places:
                places, moved = found, now
            if len(places) == self.world and now - moved > self._limit(places):
                return self._end(self._stalled(places, now - moved), tell=True)
        return None

    def _limit(self, places: dict[int, list[str]]) -> float:
        slow = any(int(steps) == 0 or phase.startswith(SLOW) for _, steps, phase in places.values())
        return self.seconds * 0.6 * (PATIENT if slow else 1)

    @staticmethod
    def _stalled(places: dict[int, list[str]], seconds: float) -> str:
        least = min(int(marks) for marks, _, _ in places.values())
        behind = [f"rank {r} (in {phase})" for r, (marks, _, phase) in places.items() if int(marks) == least]
        return f"no rank has moved for {seconds:.0f} s; least far: {', '.join(behind)}"

    def _fail(self, reason: str) -> None:
        try:
            self._store.set(FAILED, reason)
        except Exception:
            log.debug("the other ranks could not be told")

    def _end(self, reason: str, tell: bool = False) -> None:
        """End this process: its main thread may wait for ever."""
        if tell:
            self._fail(reason)
        log.error("%s; rank %d ends. The same command goes on from the last checkpoint", reason, self.rank)
        if self.rank == 0:
            time.sleep(2 * BEAT)  # its store must be read by the others
        os._exit(1)


class BatchEnd(L.Callback):
    """Marks that all callbacks are done with a batch. Place it last."""

    def __init__(self, watch: RankWatch) -> None:
        self.watch = watch

    def on_train_batch_end(self, *_: Any) -> None:
        self.watch.mark("reading data")


def is_of_others(exception: BaseException) -> bool:
    """Whether an exception is that of a collective that others did not join."""
    text = str(exception)
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Socket", "distributed")
    return isinstance(exception, RuntimeError) and any(word.lower() in text.lower() for word in words)
