"""Guards before the application: keys of clients, sizes of their requests, and time to send them."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from escdiff.serving.limits import Limits
from escdiff.serving.web.keys import asks_own, owner_of
from escdiff.serving.web.metrics import Metrics

OPEN = ("/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")  # paths that need no key
JSON_BYTES = 100_000  # of a body without pictures
OTHER = "other"  # the route of paths that are none, which would be a label each
NOT_OWN = "without API keys this machine alone is answered; ask at 127.0.0.1 or localhost, or set API keys"
NO_KEY = "the API key is missing or unknown; send the header 'Authorization: Bearer SECRET'"


class Door:
    """ASGI middleware (https://asgi.readthedocs.io): 401 without a key, 413 for a long body, 408 for a slow one.

    Where there are no keys, 403 for those that ask this machine by another name.

    A key is asked for before a body is read. Who asks stands in `scope["state"]["owner"]`.
    """

    def __init__(self, app, owners: dict[str, str], limits: Limits, metrics: Metrics) -> None:
        self.app, self.owners, self.limits, self.metrics = app, owners, limits, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, start, status = dict(scope["headers"]), time.monotonic(), 500

        async def sent(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        owner = owner_of(self.owners, headers.get(b"authorization", b"").decode("latin-1"))
        try:
            refusal = None
            if not self.owners and not asks_own(headers.get(b"host", b"").decode("latin-1")):
                refusal = JSONResponse({"detail": NOT_OWN}, 403)
            elif owner is None and scope["path"] not in OPEN:
                refusal = JSONResponse({"detail": NO_KEY}, 401, {"www-authenticate": "Bearer"})
            if refusal:
                await refusal(scope, receive, sent)
                return
            scope.setdefault("state", {})["owner"] = owner
            await self.app(scope, _limited(headers, receive, self.limits), sent)
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            self.metrics.answered(route, scope["method"], status, time.monotonic() - start)


def _limited(headers: dict[bytes, bytes], receive, limits: Limits):
    """`receive` with limits; what it raises, FastAPI hands through as the answer."""
    length, form = headers.get(b"content-length", b"0"), headers.get(b"content-type", b"").startswith(b"multipart/")
    most, count, whole = limits.body if form else JSON_BYTES, 0, False
    end = time.monotonic() + limits.upload_seconds
    too_long = HTTPException(413, f"the request has more than {most / 1e6:g} MB; send less")

    async def limited():
        nonlocal count, whole
        if whole:  # what follows is the news that the client has gone
            return await receive()
        if length.isdigit() and int(length) > most:
            raise too_long
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise HTTPException(408, f"the request took more than {limits.upload_seconds:g} s to arrive") from None
        count, whole = count + len(message.get("body", b"")), not message.get("more_body", False)
        if count > most:
            raise too_long
        return message

    return limited
