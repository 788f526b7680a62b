import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from escdiff.data import schema, shards
from escdiff.data.index import Index, Shard
from escdiff.data.shards import (
    decode,
    encode_json,
    encode_png,
    index_folder,
    read_raw,
    read_shard,
    write_shard,
)
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic

META = {"caption": "a mug", "source": "test", "licence": "CC0-1.0"}


def sample(key="a", **more):
    picture = encode_png(np.full((4, 4, 3), 9, np.uint8))
    return {"__key__": key, "png": picture, "json": encode_json(META), **more}


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    shards = [write_shard(tmp_path / f"s-{n}.tar", [sample(f"{n}{i}") for i in range(3)]) for n in range(2)]
    Index("test", shards=shards, planned=2).save(tmp_path)
    return tmp_path


def test_what_is_written_is_read(tmp_path):
    latent = np.arange(6, dtype=np.float16).reshape(2, 3)
    depth = np.array([[0, 40000], [65535, 1]], np.uint16)
    written = sample(**{"latent.npy": npy(latent), "depth.png": encode_png(depth)})
    shard = write_shard(tmp_path / "x.tar", [written, sample("b")])
    assert shard.samples == 2 and shard.bytes == (tmp_path / "x.tar").stat().st_size
    first, second = read_shard(tmp_path / "x.tar")
    schema.validate(first)
    assert first["json"] == META and first["png"].getpixel((0, 0)) == (9, 9, 9)
    assert np.array_equal(first["latent.npy"], latent) and np.array_equal(np.asarray(first["depth.png"]), depth)
    assert second["__key__"] == "b"
    assert set(next(read_shard(tmp_path / "x.tar", only=("json",)))) == {"__key__", "__url__", "json"}


def test_reading_from_a_sample_on_reads_no_contents_before_it(folder, monkeypatch):
    path = next(iter(sorted(folder.glob("*.tar"))))
    whole, sizes = list(read_raw(path)), []
    entries = shards.read_entries

    def watched(*args, **options):
        for name, data in entries(*args, **options):
            sizes.append(len(data))
            yield name, data

    monkeypatch.setattr(shards, "read_entries", watched)
    for first in (0, 1, len(whole) - 1, len(whole)):
        sizes.clear()
        assert list(read_raw(path, first=first)) == whole[first:]
        assert sum(sizes) == sum(len(v) for sample in whole[first:] for v in sample.values() if isinstance(v, bytes))


def test_same_samples_give_the_same_bytes(tmp_path):
    first, second = (write_shard(tmp_path / name, [sample()]) for name in ("a.tar", "b.tar"))
    assert first.sha256 == second.sha256
    assert not list(tmp_path.glob(".*"))


class Payload:
    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def test_nothing_in_a_shard_is_run():
    evil = pickle.dumps(Payload())
    where = {"__key__": "k", "__url__": "u"}
    for name in ("pyd", "pkl", "pth", "pickle", "exe"):
        with pytest.raises(UserError, match="not read"):
            decode({**where, name: evil})
    for name, data in (
        ("latent.npy", npy(np.array([Payload()], object))),
        ("clip.npy", evil),
        ("json", b"{"),
    ):
        with pytest.raises(UserError, match="damaged"):
            decode({**where, name: data})
    assert not Payload.ran


def test_pipes_and_addresses_are_files_that_do_not_exist(tmp_path):
    mark = tmp_path / "ran"
    for url in (f"pipe:touch {mark}", "http://localhost:1/x.tar"):
        with pytest.raises(UserError, match="cannot be read"):
            list(read_raw(url))
    assert not mark.exists()


def test_names_that_lead_out_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../up.png", "/root.png", "good.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    assert [s["__key__"] for s in read_raw(tmp_path / "x.tar")] == ["good"]


def test_damage_is_found_and_named(folder):
    index = Index.load(folder)
    index.check(folder, hashes=True)
    path = folder / "s-1.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(UserError, match=r"s-1\.tar has 2000 bytes"):
        index.check(folder)
    with pytest.raises(UserError, match=r"s-1\.tar cannot be read to its end"):
        list(read_raw(path))
    flipped = bytearray(whole)
    flipped[600] ^= 1
    path.write_bytes(flipped)
    index.check(folder)
    with pytest.raises(UserError, match=r"s-1\.tar is damaged"):
        index.check(folder, hashes=True)
    path.unlink()
    with pytest.raises(UserError, match=r"s-1\.tar is missing"):
        index.check(folder)


def test_fuzzed_shards_raise_only_user_errors(folder, tmp_path):
    rng = np.random.default_rng(0)
    whole = (folder / "s-0.tar").read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 20)):
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (tmp_path / "fuzzed.tar").write_bytes(data[: rng.integers(len(data))])
        try:
            for _ in read_shard(tmp_path / "fuzzed.tar", only=("png", "json")):
                pass
        except UserError as error:
            assert "fuzzed.tar" in str(error)


def test_bad_indexes_are_refused(folder):
    good = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    bad = [
        b"{",
        b"[]",
        json.dumps({**good, "version": 9}).encode(),
        json.dumps({**good, "extra": 1}).encode(),
    ]
    bad.append(json.dumps({**good, "shards": [{**good["shards"][0], "name": "../s-0.tar"}]}).encode())
    for data in bad:
        write_atomic(folder / "index.json", data)
        with pytest.raises(UserError):
            Index.load(folder)
    write_atomic(folder / "index.json", json.dumps({**good, "planned": 3}).encode())
    with pytest.raises(UserError, match="unfinished"):
        Index.load(folder)
    assert Index.load(folder, require_complete=False).samples == 6
    with pytest.raises(UserError, match="no index"):
        Index.load(folder / "absent")


def test_own_shards_can_be_indexed(folder):
    known = Index.load(folder)
    (folder / "index.json").unlink()
    assert index_folder(folder, "test").shards == known.shards == Index.load(folder).shards
    with pytest.raises(UserError, match="no .tar"):
        index_folder(folder / "absent")
    (folder / "s-2.tar").write_bytes(b"x" * 5000)
    with pytest.raises(UserError, match="s-2"):
        index_folder(folder)


def test_schema_names_what_is_missing():
    whole = {"__key__": "k", "__url__": "u", "png": Image.new("RGB", (1, 1)), "json": META}
    schema.validate(whole)
    for missing, words in (({"png"}, "no image"), ({"json"}, "no json")):
        with pytest.raises(UserError, match=words):
            schema.validate({k: v for k, v in whole.items() if k not in missing})
    with pytest.raises(UserError, match="licence"):
        schema.validate({**whole, "json": {"caption": "x", "source": "y"}})
    with pytest.raises(UserError, match="shape_id"):
        schema.validate(whole, grouped=True)
    with pytest.raises(UserError, match="not text"):
        schema.validate({**whole, "json": {**META, "caption": 3}})


def test_fingerprint_follows_the_data():
    first = Index("x", shards=[Shard("a", 1, 1, "00")])
    assert first.fingerprint() == Index("y", seed=4, shards=[Shard("a", 1, 1, "00")]).fingerprint()
    assert first.fingerprint() != Index("x", shards=[Shard("a", 1, 1, "01")]).fingerprint()


def test_names_with_a_leading_dot_and_slash_are_those_without(tmp_path):
    """As `tar -C DIR -cf X.tar .` writes them, and webdataset reads them."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./a.png", "./a.json", "./LICENSE", "./b/c.png", "./b/c.json"):
            tar.addfile(tarfile.TarInfo(name))
    assert [s["__key__"] for s in read_raw(tmp_path / "x.tar")] == ["a", "b/c"]
    assert [s["__key__"] for s in read_raw(tmp_path / "x.tar", first=1)] == ["b/c"]
    assert index_folder(tmp_path).samples == 2


@pytest.mark.parametrize(
    "names",
    [("a.png", "b.png", "a.json"), ("a.png", "a.jpg"), ("a.png", "/b.png"), ("a.png", "../b.png")],
    ids=["apart", "two pictures", "absolute", "above"],
)
def test_what_no_training_would_read_is_not_indexed(tmp_path, names):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match=r"x\.tar"):
        index_folder(tmp_path)
    assert not (tmp_path / "index.json").exists()
