import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from data_prep.dataset import Run
from data_prep.inspect import inspect, measure
from escdiff.data.index import Index
from escdiff.data.shards import encode_json, encode_png, write_shard
from escdiff.support.errors import UserError


@pytest.fixture
def folder(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "set")
    return tmp_path / "set"


def test_counts_are_those_of_the_pictures(folder, here):
    found = inspect(folder, here)
    assert found == json.loads((folder / "inspect.json").read_text(encoding="utf-8"))
    assert (found["samples"], found["shards"], found["broken"]) == (14, 4, [])
    assert found["side"] == {"64 to 128": 10, "under 64": 4} and found["format"] == {"PNG": 10, "JPEG": 4}
    assert found["mask"] == {"none": 9, "0.25 to 0.5": 5} and found["words"] == {"under 1": 13, "4 to 8": 1}
    assert found["licence"] == {"unknown": 14} and not (folder / ".work").exists()


def test_broken_pictures_are_counted_and_named(tmp_path, here):
    good = encode_png(np.zeros((40, 40, 3), np.uint8))
    meta = {"caption": "<b>a & b</b>", "source": "x", "licence": "CC0-1.0"}
    rows = [{"__key__": "a", "png": good, "json": encode_json(meta)}, {"__key__": "b", "png": b"", "json": b"{}"}]
    shard = write_shard(tmp_path / "a.tar", rows)
    Index("photos", shards=[shard], planned=1).save(tmp_path)
    found = inspect(tmp_path, here)
    assert [key for key, _ in found["broken"]] == ["b"]
    page = (tmp_path / "inspect.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;a &amp; b" in page and "<b>a" not in page


def test_the_page_is_whole_and_fetches_nothing(folder, here):
    inspect(folder, here)
    page = (folder / "inspect.html").read_text(encoding="utf-8")
    sources = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(v for k, v in attributes if k in ("src", "href"))
            assert tag != "script"

    Reader().feed(page)
    assert len(sources) == 14 and all(s.startswith("data:image/jpeg;base64,") for s in sources)


@pytest.mark.parametrize(("colour", "name"), [((220, 30, 30), "red"), ((30, 60, 220), "blue"), ((90, 90, 90), "grey")])
def test_hues_have_their_names(colour, name):
    sample = {"__key__": "a", "png": 1, "json": {"caption": "", "licence": "x"}}
    assert measure(sample, Image.new("RGB", (50, 40), colour))["hue"] == name


def test_a_dry_run_writes_nothing_and_no_dataset_is_refused(photos, tmp_path):
    before = sorted(photos.rglob("*"))
    assert inspect(photos, Run(dry=True)) is None and sorted(photos.rglob("*")) == before
    with pytest.raises(UserError, match="holds no index"):
        inspect(tmp_path, Run())


def test_what_a_stopped_check_has_kept_stays(folder, here):
    work = folder / ".work"
    for name in ("verify", "inspect-of-other-data"):
        (work / name).mkdir(parents=True)
    inspect(folder, here)
    assert [path.name for path in work.iterdir()] == ["verify"]
