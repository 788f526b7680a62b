"""State that the routes share: the engine, the concepts, and two threads that read uploads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import Depends, Request

from escdiff.serving.engine import Engine
from escdiff.serving.limits import Busy
from escdiff.serving.web.metrics import Metrics
from escdiff.serving.web.store import ConceptStore

FAULT = "the server failed; try again, and tell whoever runs it if it goes on"
READERS = 2  # a picture takes up to some hundred megabytes while it is decoded


class Service:
    """Of one process."""

    def __init__(self, engine: Engine, store: ConceptStore, metrics: Metrics) -> None:
        self.engine, self.store, self.metrics = engine, store, metrics
        self._readers, self._reading = ThreadPoolExecutor(READERS, "reader"), 0
        engine.painter.on_batch = metrics.painted

    async def read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(*arguments)` in one of the reading threads.

        Raises:
            Busy: too many are waiting for them; and what `work` raises.
        """
        if self._reading >= self.engine.limits.queue + READERS:
            raise Busy(f"{self._reading} uploads are being read, which is the most; come back in a while")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work, *arguments)
        finally:
            self._reading -= 1

    def close(self) -> None:
        """Stop the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request) -> str:
    return request.state.owner


Shared = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
