"""Many visitors of the demo at once, a tenth of them hostile: no crash, nothing leaks, every answer is clear.

    python benchmarks/demo_load.py --clients 64 --requests 500 --steps 2

Starts a demo of its own on this machine, asks it only, and ends it. Prints what came back, seconds per picture and the
server's memory before and after.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import httpx
import psutil
from trouble import bomb

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "escdiff" / "assets" / "examples"
HOSTILE = (
    "not_an_image", "bomb", "path", "address", "inline", "long_prompt", "numbers", "no_place", "other_file", "huge",
)  # fmt: skip


class Visitor:
    """One session of the page."""

    def __init__(self, client: httpx.AsyncClient, config: dict, number: int, steps: int) -> None:
        self.client, self.config, self.steps = client, config, steps
        self.session, self.random = f"visitor{number}", random.Random(number)
        self.paint = next(d["id"] for d in config["dependencies"] if len(d["inputs"]) > 30)

    async def upload(self, name: str, data: bytes) -> dict | str:
        answer = await self.client.post("/gradio_api/upload", files={"files": (name, data)})
        if answer.status_code != 200:
            return f"refused {answer.status_code}"
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    async def ask(self, shape, appearance, prompt: str, seed=0, steps=None) -> str:
        """Outcome of a picture: "done", or the page's message."""
        inputs = next(d["inputs"] for d in self.config["dependencies"] if d["id"] == self.paint)
        values = {c["id"]: c["props"].get("value") for c in self.config["components"]}
        data = [values[i] for i in inputs]
        data[:8] = [shape, appearance, None, None, prompt, seed, steps or self.steps, 2.0]
        body = {"data": data, "fn_index": self.paint, "session_hash": self.session, "event_data": None}
        answer = await self.client.post("/gradio_api/queue/join", json=body)
        if answer.status_code != 200:
            return f"refused {answer.status_code}"
        url = f"/gradio_api/queue/data?session_hash={self.session}"
        async with self.client.stream("GET", url) as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return "done" if message["success"] else f"told: {(message['output'] or {}).get('error')}"
                if message["msg"] in ("queue_full", "unexpected_error"):
                    return f"{message['msg']}: {message.get('message')}"
        return "the stream ended"

    async def friendly(self) -> str:
        files = [self.random.choice(sorted(EXAMPLES.glob("*.png"))) for _ in range(2)]
        first, second = [await self.upload(f.name, f.read_bytes()) for f in files]
        return await self.ask(first, second, "a photo of a <appearance> <shape>", self.random.randrange(1000))

    async def hostile(self, kind: str) -> str:
        good = await self.upload("mug.png", (EXAMPLES / "mug.png").read_bytes())
        prompt, shape, seed, steps = "a photo of a <shape>", good, 0, None
        if kind == "not_an_image":
            shape = await self.upload("a.png", b"<svg onload=alert(1)>" * 99)
        elif kind == "bomb":
            shape = await self.upload("a.png", bomb(20_000))
        elif kind == "huge":
            shape = await self.upload("a.png", bytes(20_000_000))
        elif kind == "other_file":
            shape = {**good, "path": "/etc/passwd"}
        elif kind == "address":
            shape = {**good, "path": "http://127.0.0.1:1/a.png"}
        elif kind == "inline":
            shape = {**good, "url": "data:image/png;base64,AAAA"}
        elif kind == "long_prompt":
            prompt = "<shape> " * 5000
        elif kind == "no_place":
            prompt = "a photo of a mug"
        elif kind == "numbers":
            seed, steps = -7, 10**9
        if isinstance(shape, str):
            return shape
        if kind == "path":
            answer = await self.client.get("/gradio_api/file=/etc/passwd")
            return f"refused {answer.status_code}" if b"root:" not in answer.content else "LEAK"
        return await self.ask(shape, None, prompt, seed, steps)


async def storm(address: str, clients: int, requests: int, steps: int) -> tuple[Counter, list[float]]:
    answers, seconds, numbers = Counter(), [], iter(range(requests))
    async with httpx.AsyncClient(base_url=address, timeout=3600) as client:
        config = (await client.get("/config")).json()

        async def visit(number: int) -> None:
            visitor = Visitor(client, config, number, steps)
            for i in numbers:
                start, kind = time.perf_counter(), HOSTILE[(i // 10) % len(HOSTILE)] if i % 10 == 9 else "friendly"
                try:
                    answer = await (visitor.friendly() if kind == "friendly" else visitor.hostile(kind))
                except httpx.HTTPError as error:
                    answer = f"BROKEN {type(error).__name__}"
                answers[f"{kind}: {answer[:110]}"] += 1
                if kind == "friendly" and answer == "done":
                    seconds.append(time.perf_counter() - start)

        await asyncio.gather(*(visit(number) for number in range(clients)))
    return answers, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("clients", 64), ("requests", 500), ("steps", 2), ("port", 7899)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    command = [sys.executable, "-m", "escdiff.demo", "--port", str(options.port)]
    server = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True)
    try:
        assert "open" in server.stdout.readline()
        process = psutil.Process(server.pid)
        before, start = process.memory_info().rss / 1e6, time.perf_counter()
        address = f"http://127.0.0.1:{options.port}"
        answers, seconds = asyncio.run(storm(address, options.clients, options.requests, options.steps))
        print(f"{options.requests} requests of {options.clients} visitors in {time.perf_counter() - start:.0f} s")
        for answer, count in sorted(answers.items()):
            print(f"{count:4d}  {answer}")
        print(f"median wait {sorted(seconds)[len(seconds) // 2]:.1f} s" if seconds else "no picture")
        print(f"memory {before:.0f} MB before, {process.memory_info().rss / 1e6:.0f} MB after")
        print("the server is up" if server.poll() is None else "THE SERVER DIED")
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
