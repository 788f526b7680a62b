import functools
import http.server
import shutil
import threading

import pytest
from trouble import make_trouble

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.urls import fetch_command, fetched_plan
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine

ONE = Run(Engine(workers=1), max_bad=0.5)


def test_the_list_decides_what_is_asked_of_the_program(tmp_path):
    (tmp_path / "a.csv").write_text("url,text,licence\nhttp://localhost/x.png,a mug,CC0-1.0\n", encoding="utf-8")
    command = fetch_command(tmp_path / "a.csv", tmp_path / "out", 7, "sh", ONE)
    assert command[0] == "sh" and {"--caption_col=text", '--save_additional_columns=["licence"]'} <= set(command)
    assert {"--resize_mode=no", "--number_sample_per_shard=7", "--processes_count=1"} <= set(command)
    (tmp_path / "a.txt").write_text("http://localhost/x.png\n", encoding="utf-8")
    assert not any("url_col" in part for part in fetch_command(tmp_path / "a.txt", tmp_path, 7, "sh", ONE))


def test_what_is_missing_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("address\nhttp://localhost/x.png\n", encoding="utf-8")
    with pytest.raises(UserError, match="has the columns address; expected one named url"):
        fetch_command(tmp_path / "a.csv", tmp_path, 7, "sh", ONE)
    with pytest.raises(UserError, match="pipx install img2dataset"):
        fetch_command(tmp_path / "a.csv", tmp_path, 7, "no-such-program", ONE)
    with pytest.raises(UserError, match="no list of addresses"):
        fetch_command(tmp_path / "absent.csv", tmp_path, 7, "sh", ONE)
    (tmp_path / "a.txt").write_text("http://localhost/x.png\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be made a folder"):
        fetched_plan(tmp_path / "a.txt", tmp_path / "a.csv", 4, "sh", ONE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("img2dataset") is None, reason="the program img2dataset is not installed")
def test_addresses_of_this_machine_are_fetched(tmp_path, samples_of, rejects_of):
    pytest.importorskip("pyarrow")
    make_trouble(tmp_path / "web")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    names = ("plain.jpg", "rgba.png", "cut.jpg", "text.png", "absent.jpg", "turned.jpg", "cmyk.jpg")
    (tmp_path / "a.csv").write_text(
        "url,text\n" + "".join(f"{base}/{name},a thing\n" for name in names), encoding="utf-8"
    )
    plan = fetched_plan(tmp_path / "a.csv", tmp_path / "out", 4, "img2dataset", ONE)
    server.shutdown()
    ingest(plan, tmp_path / "out", Ingest(), ONE)
    found = {s["json"]["source"].rsplit("/")[-1]: s["json"] for s in samples_of(tmp_path / "out")}
    left = {line["source"].rsplit("/")[-1]: line["reason"] for line in rejects_of(tmp_path / "out")}
    assert set(found) == {"plain.jpg", "rgba.png", "turned.jpg", "cmyk.jpg"} and len(left) == 3
    assert found["plain.jpg"]["caption"] == "a thing"
    assert "404" in left["absent.jpg"]
