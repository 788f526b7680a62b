"""Guards before the page's server: bodies of a limited size, and files only by upload.

Gradio would fetch a picture whose path is an address; this page takes no addresses.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON = 256_000  # bytes; uploads have a limit of their own


class Guard:
    """ASGI middleware (https://asgi.readthedocs.io): refuses with 400, 404 or 413 what no page of ours sends.

    Uploads lie below `sandbox`; no file from elsewhere may be named.
    """

    def __init__(self, app, sandbox: Path) -> None:
        self.app, self.sandbox = app, sandbox.resolve()

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
            foreign = next(foreign_files(json.loads(body or b"null"), self.sandbox), None)
        except (ValueError, RecursionError):
            await _refuse(send, 400, "the request is no JSON")
            return
        if foreign is not None:
            await _refuse(send, 400, "files come by upload only, not by address or path")
            return
        sent = False

        async def again():
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def foreign_files(value: Any, sandbox: Path) -> Iterator[str]:
    """The addresses, paths outside `sandbox` and inline contents that stand where a file is expected."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(item, str):
                yield from foreign_files(item, sandbox)
            elif (key == "path" and not _inside(item, sandbox)) or (key == "url" and _inline(item)):
                yield item
    elif isinstance(value, list):
        for item in value:
            yield from foreign_files(item, sandbox)


def _inline(address: str) -> bool:
    return address.strip().lower().startswith("data:")


def _inside(path: str, sandbox: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(sandbox)  # an address, too, is a relative path: not inside
    except (OSError, ValueError):
        return False


async def _refuse(send, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
