import os

import fsspec
import pytest

from escdiff.data.index import Index
from escdiff.data.shard_store import ShardStore, is_address
from escdiff.data.shards import encode_json, write_shard
from escdiff.support.errors import UserError


@pytest.fixture
def remote(tmp_path):
    """A dataset of three shards in memory; (address, file system)."""
    folder = tmp_path / "made"
    folder.mkdir()
    shards = [write_shard(folder / f"s-{i}.tar", [{"__key__": str(i), "json": encode_json({})}]) for i in range(3)]
    Index("photos", shards=shards, planned=3).save(folder)
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"/photos/{path.name}", path.read_bytes())
    yield "memory://photos", files
    files.rm("/photos", recursive=True)


def test_a_shard_taken_away_before_it_was_opened_is_fetched_again(remote, tmp_path, monkeypatch):
    store = ShardStore(remote[0], tmp_path / "cache")
    shard, taken = store.index().shards[1], []
    fetch = store.shard

    def take_away(shard):
        path = fetch(shard)
        if len(taken) < 2:
            taken.append(path.unlink())
        return path

    monkeypatch.setattr(store, "shard", take_away)
    assert [sample["__key__"] for sample in store.read(shard)] == ["1"] and len(taken) == 2
    taken.clear()
    monkeypatch.setattr(store, "shard", lambda shard: tmp_path / "gone.tar")
    with pytest.raises(UserError, match=r"gone.tar cannot be read"):
        list(store.read(shard))


def test_files_that_vanish_while_room_is_made_are_passed_over(remote, tmp_path, monkeypatch):
    store = ShardStore(remote[0], tmp_path / "cache", cache_gb=1e-9)
    first, second, _ = store.index().shards
    store.shard(first)
    (tmp_path / "cache" / store.folder.name / "gone.tar").symlink_to("nowhere")
    assert store.shard(second).exists()


def test_addresses_and_paths_are_told_apart(tmp_path):
    assert is_address("s3://bucket/x") and not is_address(tmp_path) and not is_address("data/photos")
    assert ShardStore(tmp_path).folder == tmp_path


def test_shards_are_fetched_once_and_whole(remote, tmp_path):
    address, files = remote
    store = ShardStore(address, tmp_path / "cache")
    index = store.index()
    path = store.shard(index.shards[1])
    assert path.read_bytes() == files.cat("/photos/s-1.tar")
    files.rm("/photos/s-1.tar")
    assert store.shard(index.shards[1]) == path
    assert [p.suffix for p in sorted(path.parent.iterdir())] == [".json", ".tar"]


def test_a_shard_made_anew_at_equal_size_is_fetched_again(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for caption in ("red", "sad"):
        row = {"__key__": "0", "json": encode_json({"caption": caption})}
        Index("photos", shards=[write_shard(folder / "s.tar", [row])], planned=1).save(folder)
        store = ShardStore(f"file://{folder}", tmp_path / "cache")
        (shard,) = store.index().shards
        (sample,) = store.read(shard)
        assert sample["json"] == row["json"]


def test_damage_on_the_way_is_refused(remote, tmp_path):
    address, files = remote
    store = ShardStore(address, tmp_path / "cache")
    index = store.index()
    data = bytearray(files.cat("/photos/s-0.tar"))
    data[600] ^= 1
    files.pipe("/photos/s-0.tar", bytes(data))
    for number, words in ((0, "not what the index says"), (1, "cannot fetch")):
        if number == 1:
            files.rm("/photos/s-1.tar")
        with pytest.raises(UserError, match=words):
            store.shard(index.shards[number])
    assert [p.name for p in store.folder.iterdir()] == ["index.json"]


def test_the_cache_keeps_its_size(remote, tmp_path):
    address, _ = remote
    index = ShardStore(address, tmp_path / "cache").index()
    store = ShardStore(address, tmp_path / "cache", cache_gb=2.5 * index.shards[0].bytes / 1e9)
    first, second = store.shard(index.shards[0]), store.shard(index.shards[1])
    os.utime(first, (2, 2))
    os.utime(second, (1, 1))
    store.shard(index.shards[2])
    assert first.exists() and not second.exists()


def test_unknown_and_unreachable_addresses_are_refused(tmp_path):
    for address in ("nowhere://x/y", "memory://absent"):
        with pytest.raises(UserError, match="cannot fetch"):
            ShardStore(address, tmp_path).index()
