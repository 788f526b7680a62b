import pytest
from trouble import encoded, noise

from data_prep.ingest import Ingest, ingest
from data_prep.merge import merge, rename
from data_prep.plans import make_plan
from data_prep.verify import verify
from escdiff.data.shards import encode_json
from escdiff.support.errors import UserError


def test_datasets_become_one_with_unique_keys(photos, tmp_path, here, samples_of):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(seed=40 + i), "PNG"))
    ingest(make_plan(tmp_path, 2), tmp_path / "more", Ingest(), here)
    merge([photos, tmp_path / "more"], tmp_path / "out", here)
    found, parts = samples_of(tmp_path / "out"), samples_of(photos) + samples_of(tmp_path / "more")
    assert [s["json"] for s in found] == [s["json"] for s in parts]
    assert len({s["__key__"] for s in found}) == 17 > len({s["__key__"] for s in parts})
    assert not verify(tmp_path / "out", here).problems


def test_keys_of_other_samples_follow():
    meta = {"group": "7", "references": {"shape": {"of": "8", "overlap": 0.9}, "appearance": {}}}
    made = rename({"__key__": "9", "__url__": "u", "json": encode_json(meta), "png": b""}, "1-")
    assert made == {
        "__key__": "1-9", "png": b"",
        "json": encode_json({"group": "1-7", "references": {"shape": {"of": "1-8", "overlap": 0.9}, "appearance": {}}}),
    }  # fmt: skip


def test_bad_requests_are_refused(photos, tmp_path, here):
    for folders, out in (([photos], tmp_path), ([photos, photos], tmp_path), ([photos, tmp_path], photos)):
        with pytest.raises(UserError, match="give two datasets or more"):
            merge(folders, out, here)
