"""`POST /pictures`: a prompt with concepts in; a picture out, as JSON, as PNG, or at the end of an event stream."""

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from PIL import Image

from escdiff.concept import Concept
from escdiff.serving.jobs import Job
from escdiff.serving.limits import Late
from escdiff.serving.painter import Progress
from escdiff.serving.web.schema import ConceptUse, PictureAnswer, PictureRequest
from escdiff.serving.web.service import FAULT, Owner, Service, Shared
from escdiff.serving.web.store import ConceptStore
from escdiff.support.errors import UserError

STREAM, PNG = "text/event-stream", "image/png"
LOOK = 1.0  # seconds after which it is looked whether the client is still there
router = APIRouter(prefix="/pictures", tags=["pictures"])
log = logging.getLogger(__name__)


@router.post("", response_model=PictureAnswer, responses={200: {"content": {PNG: {}, STREAM: {}}}})
async def paint_picture(service: Shared, owner: Owner, request: Request, body: PictureRequest):
    """Paint. `Accept: image/png` gives the picture itself; `Accept: text/event-stream` events on the way to it:
    `queued`, `step` (with a preview now and then, if some were asked for), and at last `picture` or `error`.
    """
    job = await service.read(make_job, service, owner, body)
    accept, events = request.headers.get("accept", ""), follow(service, job, owner, request)
    if STREAM in accept:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # the second for nginx
        return StreamingResponse(stream(service, job, events), media_type=STREAM, headers=headers)
    async for event in events:
        if isinstance(event, Image.Image):
            data = await asyncio.to_thread(png, event)
            if PNG in accept:
                return Response(data, media_type=PNG)
            return Response(answer(job, data).model_dump_json(), media_type="application/json")
    return Response(status_code=499)  # the client has gone; nobody reads it


def make_job(service: Service, owner: str, body: PictureRequest) -> Job:
    """The checked job of a request.

    Raises:
        UserError: see `escdiff.serving.jobs.make_job` and `gather`.
    """
    options = body.model_dump(exclude={"concepts", "prompt"})
    return service.engine.job(body.prompt, gather(service.store, owner, body.concepts), **options)


def gather(store: ConceptStore, owner: str, uses: Sequence[ConceptUse]) -> dict[str, Concept]:
    """Name -> concept, put together from the attributes of the stored ones that were asked for under this name.

    Raises:
        Unknown: an id that is none of the owner's.
        UserError: an attribute that is missing, or given twice.
    """
    named: dict[str, dict[str, Concept]] = {}
    for use in uses:
        concept = Concept.load(store.path(owner, use.id)).scaled(use.strength)
        parts = named.setdefault(use.name, {})
        for attribute in concept.attributes if use.attributes is None else use.attributes:
            if attribute in parts:
                problem = f"two concepts give the {attribute}"
                raise UserError(f"{problem}; say which attributes each should give, or give them names")
            parts[attribute] = concept.only(attribute)
    if any(not parts for parts in named.values()):
        raise UserError("attributes=[] given; expected some of a concept's, or leave it out")
    return {name: Concept.combine(**parts) for name, parts in named.items()}


def follow(service: Service, job: Job, owner: str, request: Request) -> AsyncIterator[Progress | Image.Image | None]:
    """Put a job in the queue; gives what happens to it, and None now and then when nothing does.

    Ends when the client has gone, and then gives the job up.

    Raises:
        Busy: the queue is full, at once. Late: while it is followed, it took too long. UserError: it cannot be painted.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()
    painter, most = service.engine.painter, service.engine.limits.seconds
    ticket = painter.submit(job, lambda event: loop.call_soon_threadsafe(queue.put_nowait, event), owner)
    service.metrics.waiting.set(painter.waiting)

    async def events():
        end, looked = loop.time() + most, loop.time()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), LOOK)
                except TimeoutError:
                    event = None
                if isinstance(event, Exception):
                    raise event
                if loop.time() > end and not isinstance(event, Image.Image):
                    raise Late(
                        f"the picture took more than {most:g} s, waiting included; ask for fewer steps, or later"
                    )
                if loop.time() > looked + LOOK:
                    if await request.is_disconnected():
                        return
                    looked = loop.time()
                yield event
                if isinstance(event, Image.Image):
                    return
        finally:
            ticket.cancel()
            service.metrics.waiting.set(painter.waiting)

    return events()


async def stream(service: Service, job: Job, events: AsyncIterator) -> AsyncIterator[str]:
    """Send events as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    yield server_event("queued", {"waiting": service.engine.painter.waiting})
    try:
        async for event in events:
            if event is None:
                yield ": waiting\n\n"
            elif isinstance(event, Progress):
                shown = {} if event.preview is None else {"png": encoded(png(event.preview))}
                yield server_event("step", {"step": event.step, "total": event.total, **shown})
            else:
                yield server_event("picture", answer(job, await asyncio.to_thread(png, event)).model_dump())
    except UserError as error:
        yield server_event("error", {"detail": str(error)})
    except Exception:  # the head of the answer has gone out, so no handler can say it
        log.exception("a picture failed")
        yield server_event("error", {"detail": FAULT})


def server_event(event: str, values: dict) -> str:
    """One event."""
    return f"event: {event}\ndata: {json.dumps(values)}\n\n"


def answer(job: Job, data: bytes) -> PictureAnswer:
    """With the picture's PNG."""
    return PictureAnswer(prompt=job.prompt, seed=job.seed, height=job.height, width=job.width, png=encoded(data))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()
