"""What stands before the page's server: bodies of a limited size, and files only by upload.

Gradio would fetch a picture whose path is an address; this page takes no addresses.
"""

import json
from collections.abc import Iterator
from typing import Any

MAX_JSON = 256_000  # bytes; uploads have a limit of their own
REMOTE = ("http://", "https://", "ftp://", "file://", "data:")


class Guard:
    """ASGI middleware (https://asgi.readthedocs.io): refuses with 400, 404 or 413 what no page of ours sends."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if "/proxy=" in scope["path"]:
            await _refuse(send, 404, "this page fetches nothing")
            return
        if scope["method"] != "POST" or b"json" not in headers.get(b"content-type", b""):
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MAX_JSON:
                await _refuse(send, 413, f"the request has more than {MAX_JSON} bytes")
                return
            if not message.get("more_body"):
                break
        try:
            remote = next(addresses(json.loads(body or b"null")), None)
        except (ValueError, RecursionError):
            await _refuse(send, 400, "the request is no JSON")
            return
        if remote is not None:
            await _refuse(send, 400, "files come by upload only, not by address")
            return
        sent = False

        async def again():
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def addresses(value: Any) -> Iterator[str]:
    """The addresses that stand where a file's path is expected, or hold its content."""
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, str):
                low = each.strip().lower()
                if (key == "path" and low.startswith(REMOTE)) or (key == "url" and low.startswith("data:")):
                    yield each
            else:
                yield from addresses(each)
    elif isinstance(value, list):
        for each in value:
            yield from addresses(each)


async def _refuse(send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
