"""A thread that paints: requests that wait together, and ask for the same size and steps, go in one batch."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.data.pictures import to_pil
from escdiff.serving.jobs import Job, paint_together
from escdiff.serving.limits import Busy, Late, Limits
from escdiff.support.errors import UserError

FAULTS = 3  # in a row, after which something is wrong with the program or the device
log = logging.getLogger(__name__)


class _Stop(Exception):
    """Nobody waits for these pictures any more."""


@dataclass(frozen=True)
class Progress:
    """`step` of `total` calls of the U-Net are done; sometimes with the picture so far."""

    step: int
    total: int
    preview: Image.Image | None = None


@dataclass(eq=False)
class Ticket:
    """A job that waits or is painted.

    Attributes:
        tell: called by the painting thread with every `Progress`, then with the picture or with an exception.
        owner: whose it is.
    """

    job: Job
    tell: Callable[[Progress | Image.Image | Exception], None]
    owner: str = ""
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for it any more; alone in its batch, it is given up at the next step."""
        self.cancelled = True

    def say(self, event: Progress | Image.Image | Exception) -> None:
        """Tell who waits, if anybody still does."""
        if not self.cancelled:
            try:
                self.tell(event)
            except RuntimeError:  # the event loop of who waited has ended
                self.cancel()


class Painter:
    """Owns the U-Net: nothing else may paint with this backbone.

    Attributes:
        on_batch: called after every batch with its size and its seconds.
    """

    def __init__(self, backbone: Backbone, limits: Limits) -> None:
        self.backbone, self.limits = backbone, limits
        self.on_batch: Callable[[int, float], None] = lambda size, seconds: None
        self._waiting: deque[Ticket] = deque()
        self._changed, self._closed, self._faults = threading.Condition(), False, 0
        self._own_side = backbone.picture_size
        self._thread = threading.Thread(target=self._work, name="painter", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        with self._changed:
            self._forget()
            return len(self._waiting)

    @property
    def healthy(self) -> bool:
        """Whether it paints, and has not failed again and again for no fault of those who asked."""
        return self._thread.is_alive() and not self._closed and self._faults < FAULTS

    def submit(self, job: Job, tell: Callable[[Progress | Image.Image | Exception], None], owner: str = "") -> Ticket:
        """Put a job at the end of the queue.

        Raises:
            Busy: the queue is full, or the owner's share of it.
            Late: the painter has stopped.
        """
        ticket = Ticket(job, tell, owner)
        with self._changed:
            if self._closed:
                raise Late("the server is stopping; ask again in a minute")
            self._forget()
            if len(self._waiting) >= self.limits.queue:
                raise Busy(f"{len(self._waiting)} pictures are waiting, which is the most; come back in a while")
            if (queued := sum(other.owner == owner for other in self._waiting)) >= self.limits.share:
                raise Busy(f"{queued} of your pictures are waiting, which is the most; come back when some are done")
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Stop: those that wait are told, those that are being painted are given up."""
        with self._changed:
            self._closed = True
            for ticket in self._waiting:
                ticket.say(Late("the server is stopping; ask again in a minute"))
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._paint(batch)

    def _next(self) -> list[Ticket]:
        """The oldest ticket and what can be painted with it; waits for them. Empty at the end."""
        with self._changed:
            while not self._closed:
                self._forget()
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                batch = [t for t in self._waiting if t.job.kind == first.job.kind][: self._room(first.job)]
                left = first.since + self.limits.wait - time.monotonic()
                if left <= 0 or len(batch) == self._room(first.job):
                    self._waiting = deque(t for t in self._waiting if t not in batch)
                    return batch
                self._changed.wait(left)
        return []

    def _room(self, job: Job) -> int:
        """Pictures in a batch: of larger ones as many fewer as they are larger."""
        return max(1, self.limits.batch * self._own_side**2 // max(self._own_side**2, job.height * job.width))

    def _forget(self) -> None:
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)

    def _paint(self, batch: list[Ticket]) -> None:
        start = time.monotonic()
        try:
            pictures = paint_together(self.backbone, [ticket.job for ticket in batch], self._watch(batch))
        except _Stop:
            if self._closed:
                for ticket in batch:
                    ticket.say(Late("the server is stopping; ask again in a minute"))
            return
        except Exception as error:  # a batch must not end the thread
            self._fail(batch, error)
            return
        self._faults = 0
        self.on_batch(len(batch), time.monotonic() - start)
        for ticket, picture in zip(batch, pictures, strict=True):
            ticket.say(picture)

    def _fail(self, batch: list[Ticket], error: Exception) -> None:
        if len(batch) > 1:  # one by one, so that what one brought along harms no other
            for ticket in batch:
                self._paint([ticket])
            return
        if not isinstance(error, UserError):
            self._faults += 1
            log.error("a picture could not be painted", exc_info=error)
        batch[0].say(error)

    def _watch(self, batch: list[Ticket]) -> Callable[[int, Tensor], None]:
        def watch(step: int, latents: Tensor) -> None:
            if self._closed or all(ticket.cancelled for ticket in batch):
                raise _Stop
            total, done = batch[0].job.calls, step + 1
            shown = [i for i, t in enumerate(batch) if not t.cancelled and done < total and _is_shown(t.job, done)]
            previews = {}
            if shown:
                with torch.no_grad():
                    previews = dict(zip(shown, map(to_pil, self.backbone.decode(latents[shown])), strict=True))
            for i, ticket in enumerate(batch):
                ticket.say(Progress(done, total, previews.get(i)))

        return watch


def _is_shown(job: Job, step: int) -> bool:
    return bool(job.previews) and step % max(1, job.calls // job.previews) == 0
