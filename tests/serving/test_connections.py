"""Real connections: those that are cut, slow, or more than the server takes at once."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
import uvicorn
from trouble import encoded, noise

from escdiff.serving import painter
from escdiff.serving.engine import Engine
from escdiff.serving.jobs import paint_together
from escdiff.serving.limits import Limits
from escdiff.serving.web.app import create_app
from escdiff.serving.web.store import ConceptStore

LIMITS = Limits(queue=2, batch=1, steps=900, seconds=2.0, upload_seconds=1.0)


@contextmanager
def serving(engine, limits, folder):
    """(address, application) of a server in a thread, without keys."""
    own = Engine(engine.backbone, engine.encoder, 1.0, limits)
    app = create_app(own, ConceptStore(folder, 50))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        while not running.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    with serving(engine, LIMITS, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def sizes(server):
    """Sizes of the batches that were painted to their end."""
    painted = []
    server[1].state.service.engine.painter.on_batch = lambda size, seconds: painted.append(size)
    return painted


def body(steps):
    return {"prompt": "a red mug", "steps": steps}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_cut_connection_frees_the_painter(server, sizes, accept):
    address, app = server
    own = app.state.service.engine.painter

    def wait(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    async def cut():
        async with httpx.AsyncClient(base_url=address, headers={"accept": accept}) as client:
            asking = asyncio.create_task(client.post("/pictures", json=body(900)))
            await asyncio.sleep(0.3)
            asking.cancel()

    asyncio.run(cut())
    answer = httpx.post(f"{address}/pictures", json=body(1), timeout=60)
    assert answer.status_code == 200
    wait(lambda: not own.waiting)
    assert sizes == [1], "the first was not painted to its end"


def test_more_than_may_wait_are_told_to_come_back(engine, tmp_path, monkeypatch):
    begun, freed = threading.Event(), threading.Event()

    def paint(*arguments):
        begun.set()
        assert freed.wait(60)
        return paint_together(*arguments)

    monkeypatch.setattr(painter, "paint_together", paint)

    async def ask(address, waiting):
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            asked = []
            for number in range(LIMITS.queue + 1):  # one is painted
                asked.append(asyncio.create_task(client.post("/pictures", json=body(1))))
                while not begun.is_set() or waiting() < number:
                    await asyncio.sleep(0.02)
            refused = await client.post("/pictures", json=body(1))
            freed.set()
            return refused, await asyncio.gather(*asked)

    with serving(engine, replace(LIMITS, seconds=60.0), tmp_path) as (address, app):
        refused, answers = asyncio.run(ask(address, lambda: app.state.service.engine.painter.waiting))
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert "2 pictures are waiting" in refused.json()["detail"]
    assert [answer.status_code for answer in answers] == [200] * (LIMITS.queue + 1)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_picture_that_takes_too_long_is_given_up(server, sizes, accept):
    answer = httpx.post(f"{server[0]}/pictures", json=body(900), timeout=60, headers={"accept": accept})
    if accept == "application/json":
        assert answer.status_code == 503 and "more than 2 s" in answer.json()["detail"]
    else:
        assert "event: error" in answer.text.rstrip().split("\n\n")[-1] and "more than 2 s" in answer.text
    assert sizes == []


def test_a_body_that_does_not_come_ends_the_request(server):
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = b"POST /pictures HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        slow.sendall(head + b"content-length: 50\r\n\r\n{")
        assert b" 408 " in slow.recv(1000).split(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=20) as cut:
        cut.sendall(b"POST /concepts HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\nhalf")
    files = {"picture": encoded(noise(), "PNG")}
    assert httpx.post(f"{server[0]}/concepts", files=files, timeout=60).status_code == 201


def test_another_name_of_this_machine_is_not_answered(server):
    got = httpx.get(f"{server[0]}/concepts", headers={"host": "evil.example.org"})
    assert got.status_code == 403 and "127.0.0.1" in got.json()["detail"]
