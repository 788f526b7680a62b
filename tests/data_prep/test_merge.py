import numpy as np
import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.ingest import Ingest, ingest
from data_prep.merge import merge, rename
from data_prep.pairs import Pairs, pairs
from data_prep.plans import make_plan
from data_prep.verify import verify
from escdiff.data.index import Index
from escdiff.data.photos.objects import OBJECT, Objects
from escdiff.data.shard_store import ShardStore
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
    def meta(p):
        return {
            "group": f"{p}7", "same_shape": [f"{p}8"], "same_appearance": [],
            "references": {"shape": {f"{p}8": {"overlap": 0.9}}, "appearance": {"distance": 2.0}},
        }  # fmt: skip

    made = rename({"__key__": "9", "__url__": "u", "json": encode_json(meta("")), "png": b""}, "1-")
    assert made == {"__key__": "1-9", "png": b"", "json": encode_json(meta("1-"))}


def test_pairs_are_found_after_merging(photos, tmp_path, here, samples_of):
    """Two pictures of one mug, whose outlines agree."""
    for name in "ab":
        for kind, colour in ((".png", (200, 40, 40)), (".mask.png", (255, 255, 255))):
            picture = Image.new("RGB", (64, 64), (128, 128, 128) if kind == ".png" else (0, 0, 0))
            picture.paste(colour, (10, 14, 50, 44))
            (tmp_path / "in" / "mug").mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / "mug" / f"{name}{kind}").write_bytes(encoded(picture, "PNG"))
    ingest(make_plan(tmp_path / "in", 4, "object"), tmp_path / "mugs", Ingest(), here)
    pairs(tmp_path / "mugs", tmp_path / "pairs", Pairs(size=48), here)
    merge([photos, tmp_path / "pairs"], tmp_path / "out", here)
    (shard,) = Index.load(tmp_path / "out").shards[-1:]
    first, second = (sample for sample in samples_of(tmp_path / "out") if sample["json"].get("object") == "mug")
    objects, meta = Objects(ShardStore(tmp_path / "out")), first["json"]
    other = objects.other(shard, first["__key__"], meta, OBJECT, np.random.default_rng(0), meta["same_shape"])
    assert other["__key__"] == second["__key__"]
    assert list(meta["references"]["shape"]) == [second["__key__"]]


def test_bad_requests_are_refused(photos, tmp_path, here):
    for folders, out in (([photos], tmp_path), ([photos, photos], tmp_path), ([photos, tmp_path], photos)):
        with pytest.raises(UserError, match="give two datasets or more"):
            merge(folders, out, here)
