"""The server, asked as its users ask it, and as they should not."""

import base64
import io
import json

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors import safe_open
from trouble import bomb, encoded, noise

from escdiff.concept import Concept
from escdiff.serving.engine import Engine
from escdiff.serving.jobs import paint_together
from escdiff.serving.limits import Limits
from escdiff.serving.web.app import create_app
from escdiff.serving.web.keys import hashed
from escdiff.serving.web.store import ConceptStore
from escdiff.sharing.layouts import LAYOUTS

PNG = encoded(noise(), "PNG")
ANN, BOB = ({"authorization": f"Bearer {letter * 20}"} for letter in "ab")
OWNERS = {hashed("a" * 20): "ann", hashed("b" * 20): "bob"}


@pytest.fixture(scope="module")
def client(engine, tmp_path_factory):
    own = Engine(engine.backbone, engine.encoder, 1.0, Limits(batch=4, steps=60, wait=0.0, upload_seconds=5))
    app = create_app(own, ConceptStore(tmp_path_factory.mktemp("store"), 50), OWNERS)
    with TestClient(app, headers=ANN, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def identity(client):
    return client.post("/concepts", files={"picture": PNG}, data={"title": "mug"}).json()["id"]


def paint(client, identity, accept="application/json", **changes):
    body = {"prompt": "a photo of a <shape>", "concepts": [{"id": identity}], "steps": 2} | changes
    return client.post("/pictures", json=body, headers={"accept": accept})


def events(text):
    """(event, data) of a stream, without comments."""
    parts = [part.split("\n", 1) for part in text.split("\n\n") if part.startswith("event:")]
    return [(head.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for head, data in parts]


def test_a_picture_becomes_a_concept_file(client, engine, tmp_path):
    made = client.post("/concepts", files={"picture": PNG}, data={"title": "mug", "shape_strength": "0.5"})
    assert made.status_code == 201 and made.headers["location"] == f"/concepts/{made.json()['id']}"
    about = made.json()
    assert about["placeholders"] == ["<shape>", "<appearance>", "<concept>"] and about["title"] == "mug"
    (tmp_path / "c.safetensors").write_bytes(client.get(made.headers["location"]).content)
    got, expected = Concept.load(tmp_path / "c.safetensors"), engine.encoder.encode(noise()).scaled({"shape": 0.5})
    assert all(torch.equal(got.vectors[a], expected.vectors[a]) for a in expected.attributes)
    assert about["bytes"] == (tmp_path / "c.safetensors").stat().st_size
    half = client.get(made.headers["location"], params={"half": True}).content
    assert len(half) < 0.7 * about["bytes"]


def test_the_file_itself_is_given_to_those_who_accept_it(client, tmp_path):
    got = client.post(
        "/concepts", files={"shape": PNG, "mask": encoded(noise().convert("L"), "PNG")},
        headers={"accept": "application/octet-stream"},
    )  # fmt: skip
    (tmp_path / "c.safetensors").write_bytes(got.content)
    assert got.status_code == 201 and Concept.load(tmp_path / "c.safetensors").attributes == ("shape",)
    again = client.post("/concepts", files={"concept": got.content})
    assert again.json()["attributes"] == ["shape"]


def test_other_programs_layouts(client, identity, tmp_path):
    for layout in LAYOUTS:
        got = client.get(f"/concepts/{identity}", params={"layout": layout, "attribute": "shape"})
        if layout == "p+":
            (tmp_path / "p.safetensors").write_bytes(got.content)
            with safe_open(tmp_path / "p.safetensors", "pt") as file:
                assert len(list(file.keys())) == 16
        else:
            assert got.status_code in (200, 422)
    assert client.get(f"/concepts/{identity}", params={"layout": "exe"}).status_code == 422


def test_the_picture_is_the_pipelines(client, identity, engine):
    concept = engine.encoder.encode(noise())
    (expected,) = paint_together(engine.backbone, [engine.job("a photo of a <shape>", {"": concept}, seed=7, steps=2)])
    got = paint(client, identity, seed=7).json()
    assert got["seed"] == 7 and got["prompt"] == "a photo of a <shape>"
    assert Image.open(io.BytesIO(base64.b64decode(got["png"]))).tobytes() == expected.tobytes()
    plain = paint(client, identity, accept="image/png", seed=7)
    assert plain.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(plain.content)).tobytes() == expected.tobytes()
    assert paint(client, identity, prompt="", seed=7).json()["prompt"] == "a photo of a <appearance> <shape>"


def test_progress_is_streamed(client, identity):
    got = paint(client, identity, accept="text/event-stream", steps=4, previews=2)
    assert got.headers["content-type"].startswith("text/event-stream")
    told = events(got.text)
    assert [name for name, _ in told] == ["queued", *["step"] * 4, "picture"]
    assert ["png" in data for _, data in told] == [False, False, True, False, False, True]
    assert told[1][1] == {"step": 1, "total": 4}
    assert told[-1][1] == paint(client, identity, steps=4).json()


def test_shape_of_one_appearance_of_another(client, identity):
    other = client.post("/concepts", files={"picture": encoded(noise(seed=3), "JPEG")}).json()["id"]
    mixed = [{"id": identity, "attributes": ["shape"]}, {"id": other, "attributes": ["appearance"], "strength": 0.5}]
    assert paint(client, identity, concepts=mixed, prompt="a <appearance> <shape>").status_code == 200
    named = [{"id": identity, "name": "mug"}, {"id": other, "name": "dog", "strength": {"shape": 0.2}}]
    assert paint(client, identity, concepts=named, prompt="a <mug> and a <dog-shape>").status_code == 200
    assert paint(client, identity, concepts=[], prompt="a red mug").status_code == 200
    twice = paint(client, identity, concepts=[{"id": identity}, {"id": other}])
    assert twice.status_code == 422 and "two concepts give the shape" in twice.json()["detail"]


def test_nobody_sees_anothers_concepts(client, identity):
    for method, path in (("GET", f"/concepts/{identity}"), ("DELETE", f"/concepts/{identity}")):
        others, unknown = (client.request(method, at, headers=BOB) for at in (path, f"/concepts/{'0' * 32}"))
        assert others.status_code == unknown.status_code == 404
        assert others.json()["detail"].replace(identity, "0" * 32) == unknown.json()["detail"]
    asked = client.post("/pictures", json={"prompt": "<shape>", "concepts": [{"id": identity}]}, headers=BOB)
    assert asked.status_code == 404
    assert client.get("/concepts", headers=BOB).json() == []
    assert identity in [kept["id"] for kept in client.get("/concepts").json()]


def test_a_deleted_concept_is_gone(client):
    made = client.post("/concepts", files={"picture": PNG}).json()["id"]
    assert client.delete(f"/concepts/{made}").status_code == 204
    assert client.get(f"/concepts/{made}").status_code == paint(client, made).status_code == 404


def test_without_a_key_nothing_but_the_door(client):
    for method, path in (("GET", "/concepts"), ("POST", "/concepts"), ("POST", "/pictures"), ("GET", "/metrics")):
        for key in ("", "Bearer " + "x" * 20, "Basic abc"):
            got = client.request(method, path, headers={"authorization": key})
            assert got.status_code == 401 and "API key" in got.json()["detail"]
    assert client.get("/health", headers={"authorization": ""}).json()["healthy"]
    assert client.get("/openapi.json", headers={"authorization": ""}).status_code == 200


HOSTILE_FILES = {
    "no picture": ({"picture": b"<svg onload=alert(1)>"}, 422, "not an image"),
    "a bomb": ({"picture": bomb()}, 413, "megapixels"),
    "a huge file": ({"picture": bytes(11_000_000)}, 413, "more than 10 MB"),
    "a cut picture": ({"picture": PNG[:200]}, 422, "truncated"),
    "a pickle": ({"concept": b"\x80\x04\x95cos\nsystem\n"}, 422, "no safetensors file"),
    "a huge concept": ({"concept": bytes(4_000_001)}, 413, "more than 4 MB"),
    "both": ({"concept": b"x", "picture": PNG}, 422, "one or the other"),
    "a picture too many": ({"picture": PNG, "shape": PNG}, 422, "picture stands for"),
    "another mask": ({"shape": PNG, "mask": encoded(noise(8, 8), "PNG")}, 422, "mask has"),
    "nothing": ({"other": PNG}, 422, "nothing was given"),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_hostile_files_are_refused(client, name):
    files, status, said = HOSTILE_FILES[name]
    got = client.post("/concepts", files=files)
    assert (got.status_code, said in got.json()["detail"]) == (status, True), got.text
    assert "/tmp" not in got.text and "Traceback" not in got.text


HOSTILE_BODIES = {
    "no JSON": (b"{", 422, "JSON"),
    "deep": (b"[" * 50_000, None, ""),
    "a list": (b"[]", 422, ""),
    "a field too many": (b'{"prompt": "x", "__class__": "os"}', 422, "__class__"),
    "not a number": (b'{"prompt": "x", "guidance": NaN}', 422, "guidance"),
    "too many steps": (b'{"prompt": "x", "steps": 999999999}', 422, "steps"),
    "a huge number": (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", None, ""),
    "a path": (b'{"prompt": "<shape>", "concepts": [{"id": "../../etc/passwd"}]}', 404, "no concept"),
    "an unknown word": (b'{"prompt": "a <hat>"}', 422, "<hat>"),
    "a zero byte": (b'{"prompt": "a \\u0000 mug", "concepts": [{"id": "\\u0000"}]}', 404, ""),
    "half a character": (b'{"prompt": "a \\ud800 <hat>"}', 422, ""),
    "long": (b'{"prompt": "' + b"x" * 200_000 + b'"}', 413, "more than 0.1 MB"),
    "large": (b'{"prompt": "x", "width": 100000, "height": 8}', 422, "width"),
}


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_hostile_bodies_are_refused(client, name):
    body, status, said = HOSTILE_BODIES[name]
    got = client.post("/pictures", content=body, headers={"content-type": "application/json"})
    assert 400 <= got.status_code < 500 and status in (None, got.status_code), got.text
    assert said in got.json()["detail"] and "xxx" not in got.text


def test_a_body_without_a_length_has_a_limit_too(client):
    chunks = (b"x" * 40_000 for _ in range(4))
    got = client.post("/pictures", content=chunks, headers={"content-type": "application/json"})
    assert got.status_code == 413


def test_health_and_metrics(client, identity):
    paint(client, identity)
    text = client.get("/metrics").text
    assert 'escdiff_requests_total{method="POST",route="/pictures",status="200"}' in text
    assert "escdiff_batch_size_count" in text and "escdiff_waiting 0.0" in text
    assert identity not in text and "ann" not in text
    client.get("/concepts/" + "1" * 32)
    assert "/concepts/1111" not in client.get("/metrics").text
    painter = client.app.state.service.engine.painter
    painter._faults = 3
    assert client.get("/health").status_code == 503
    painter._faults = 0
    assert client.get("/health").json() == {"healthy": True, "waiting": 0, "backbone": "tiny"}


def test_the_openapi_page_shows_all(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/concepts", "/concepts/{identity}", "/pictures", "/health", "/metrics"} <= paths.keys()
    assert "security" in paths["/pictures"]["post"]
    assert "429" in paths["/pictures"]["post"]["responses"]
