"""Clients of `benchmarks/serving.py`: most ask for their own picture again and again, some do what they should not."""

import asyncio
import base64
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import numpy as np
from PIL import Image
from trouble import bomb

EXAMPLES = sorted((Path(__file__).parents[1] / "escdiff" / "assets" / "examples").glob("*.png"))
PROMPT = "a photo of a <appearance> <shape>"
LEVELS = 2.0  # of 255, mean: how much a picture may differ by what it was painted beside
# What each gets: the status, or None for a connection that the client cuts.
HOSTILE = {
    "no picture": 422, "bomb": 413, "huge": 413, "huge without a length": 413, "pickle": 422, "unknown id": 404,
    "another's id": 404, "another's file": 404, "bad JSON": 422, "deep JSON": 400, "no key": 401, "numbers": 422,
    "no place": 422, "long prompt": 422, "cut stream": None, "cut upload": None,
}  # fmt: skip


@dataclass
class Outcome:
    """Answers, faults, and the workers' memory on the way."""

    answers: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    cpu: float = 0.0  # seconds that the workers spent
    memory: list[float] = field(default_factory=list)

    def growth(self) -> tuple[float, float]:
        """Highest megabytes in the second fifth and in the last."""
        fifth = max(1, len(self.memory) // 5)
        return max(self.memory[fifth : 2 * fifth] or self.memory), max(self.memory[-fifth:])


class Client:
    """One user's program, with a concept, a seed and a picture of its own."""

    def __init__(self, address: str, name: str, secret: str, number: int, steps: int) -> None:
        headers = {"authorization": f"Bearer {secret}"}
        self.http = httpx.AsyncClient(base_url=address, headers=headers, timeout=3600)
        self.name, self.number, self.steps, self.random = name, number, steps, random.Random(number)
        self.concept, self.picture = "", None

    async def begin(self) -> None:
        """Have a picture read."""
        data = EXAMPLES[self.number % len(EXAMPLES)].read_bytes()
        answer = await self.patiently("/concepts", files={"picture": data}, data={"title": f"of {self.name}"})
        self.concept = answer.json()["id"]

    async def patiently(self, path: str, **body) -> httpx.Response:
        """Ask again for as long as the server says that it is busy."""
        while (answer := await self.http.post(path, **body)).status_code in (429, 503):
            await asyncio.sleep(0.2 + self.random.random())
        return answer

    def body(self, **changes) -> dict:
        """Of the client's own picture."""
        request = {"prompt": PROMPT, "concepts": [{"id": self.concept}], "seed": self.number, "steps": self.steps}
        return request | changes

    async def friendly(self) -> str:
        """Ask for the picture; it must be the one of before."""
        answer = await self.patiently("/pictures", json=self.body())
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.json()['detail']}"
        reply = answer.json()
        if reply["seed"] != self.number:
            return "ANOTHER'S ANSWER"
        with Image.open(io.BytesIO(base64.b64decode(reply["png"]))) as picture:
            pixels = np.asarray(picture, dtype=np.float32)
        if self.picture is None:
            self.picture = pixels
        return "200" if np.abs(pixels - self.picture).mean() <= LEVELS else "ANOTHER PICTURE"

    async def hostile(self, kind: str, other: "Client") -> str:
        """Do this kind of harm; gives the status."""
        http, post = self.http, self.http.post
        upload = {"no picture": b"<svg onload=alert(1)>" * 99, "bomb": bomb(20_000), "huge": bytes(11_000_000)}
        if kind in upload:
            answer = await post("/concepts", files={"picture": upload[kind]})
        elif kind == "huge without a length":
            answer = await post("/pictures", content=chunks(), headers={"content-type": "application/json"})
        elif kind == "pickle":
            answer = await post("/concepts", files={"concept": b"\x80\x04\x95cos\nsystem\n"})
        elif kind == "another's file":
            answer = await http.get(f"/concepts/{other.concept}")
        elif kind == "bad JSON":
            answer = await post("/pictures", content=b'{"prompt": ', headers={"content-type": "application/json"})
        elif kind == "deep JSON":
            answer = await post("/pictures", content=b"[" * 90_000, headers={"content-type": "application/json"})
        elif kind == "no key":
            answer = await post("/pictures", json=self.body(), headers={"authorization": "Bearer none"})
        elif kind == "cut stream":
            return await self.cut_stream()
        elif kind == "cut upload":
            return await self.cut_upload()
        else:
            changes = {
                "unknown id": {"concepts": [{"id": "0" * 32}]}, "another's id": {"concepts": [{"id": other.concept}]},
                "numbers": {"steps": 10**9, "seed": -7}, "no place": {"prompt": "a mug"},
                "long prompt": {"prompt": "<shape> " * 900},
            }[kind]  # fmt: skip
            answer = await post("/pictures", json=self.body(**changes))
        if b"of " + other.name.encode() in answer.content or other.concept.encode() in answer.content.replace(
            f"there is no concept '{other.concept}'".encode(), b""
        ):
            return "A LEAK"
        return str(answer.status_code)

    async def cut_stream(self) -> str:
        """Go away after the first event."""
        headers = {"accept": "text/event-stream"}
        async with self.http.stream("POST", "/pictures", json=self.body(steps=50), headers=headers) as answer:
            async for _ in answer.aiter_lines():
                break
        return "None"

    async def cut_upload(self) -> str:
        """Go away in the middle of a picture."""
        url = self.http.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /concepts HTTP/1.1\r\nhost: {url.host}\r\nauthorization: {self.http.headers['authorization']}\r\n"
        writer.write(f"{head}content-type: multipart/form-data; boundary=x\r\ncontent-length: 90000\r\n\r\n".encode())
        writer.write(b'--x\r\ncontent-disposition: form-data; name="picture"; filename="a.png"\r\n\r\n\x89PNG' * 9)
        await writer.drain()
        writer.close()
        return "None"


async def chunks():
    for _ in range(30):
        yield b" " * 10_000


async def storm(
    address: str, keys: Mapping[str, str], clients: int, requests: int, steps: int,
    used: Callable[[], tuple[float, float]], hostile: bool = True,
) -> Outcome:  # fmt: skip
    """`requests` of `clients`, every tenth hostile; what came of them.

    Args:
        used: called on the way; the workers' megabytes, and their seconds of CPU.
    """
    outcome, names = Outcome(), list(keys.items())
    everybody = [Client(address, *names[i % len(names)], i, steps) for i in range(clients)]
    await asyncio.gather(*(client.begin() for client in everybody))
    start, spent, numbers = time.perf_counter(), used()[1], iter(range(requests))

    async def visit(client: Client) -> None:
        for i in numbers:
            kind = list(HOSTILE)[(i // 10) % len(HOSTILE)] if hostile and i % 10 == 9 else "friendly"
            try:
                other = next((o for o in everybody if o.name != client.name), client)
                answer = await (client.friendly() if kind == "friendly" else client.hostile(kind, other))
            except httpx.HTTPError as error:
                answer = type(error).__name__
            outcome.answers[f"{kind}: {answer}"] += 1
            # A server that refuses a body before it has come may close the connection while the client still sends.
            allowed = {"200"} if kind == "friendly" else {str(HOSTILE[kind])}
            if kind.startswith("huge"):
                allowed |= {"WriteError", "ReadError", "RemoteProtocolError"}
            if answer not in allowed:
                outcome.wrong[f"{kind}: {answer}"] += 1
            outcome.memory.append(used()[0])

    await asyncio.gather(*(visit(client) for client in everybody))
    outcome.seconds, outcome.cpu = time.perf_counter() - start, used()[1] - spent
    pictures = [client.picture.tobytes() for client in everybody if client.picture is not None]
    if len(set(pictures)) < len(pictures):
        outcome.wrong["two clients have one picture"] += 1
    await asyncio.gather(*(client.http.aclose() for client in everybody))
    return outcome
