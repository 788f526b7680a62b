import pytest
from trouble import encoded, noise

from data_prep.dataset import Run
from data_prep.engine import Engine
from data_prep.ingest import Ingest, ingest
from data_prep.sources import make_plan
from escdiff.data.index import Index
from escdiff.errors import UserError

pytest.importorskip("imagehash")
from data_prep.dedup import Dedup, dedup


def names(samples) -> list[str]:
    return [sample["json"]["source"] for sample in samples]


def test_of_near_duplicates_the_first_stays(photos, tmp_path, here, samples_of, rejects_of):
    dedup(photos, tmp_path / "out", Dedup(), here)
    left = rejects_of(tmp_path / "out")
    assert len(samples_of(tmp_path / "out")) == 10 and {line["kind"] for line in left} == {"left out"}
    kept = {sample["__key__"] for sample in samples_of(tmp_path / "out")}
    assert len(left) == 4 and all(line["reason"].split()[3] in kept for line in left)
    assert not (tmp_path / "out" / ".work").exists()


def test_what_is_kept_is_the_same_bytes_in_the_same_shards(photos, tmp_path, here):
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded(noise(seed=i), "PNG"))
    whole = ingest(make_plan(tmp_path / "in", 3), tmp_path / "set", Ingest(), here)
    assert dedup(tmp_path / "set", tmp_path / "out", Dedup(), here).shards == whole.shards


def test_a_test_set_is_kept_out_of_training(photos, tmp_path, here, samples_of, rejects_of):
    (tmp_path / "in").mkdir()
    for i in (2, 9):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(encoded(noise(80, 64, seed=i), "JPEG", quality=90))
    ingest(make_plan(tmp_path / "in", 3), tmp_path / "test", Ingest(), here)
    dedup(photos, tmp_path / "out", Dedup(), here, against=tmp_path / "test")
    assert not {"2.png", "2-again.jpg", "9.png"} & set(names(samples_of(tmp_path / "out")))
    assert len(samples_of(tmp_path / "out")) == 8
    assert sum("of the test set" in line["reason"] for line in rejects_of(tmp_path / "out")) == 3


def test_a_second_run_hashes_nothing_and_a_stopped_one_goes_on(photos, tmp_path, here, contents_of, monkeypatch):
    dedup(photos, tmp_path, Dedup(), here)
    made = contents_of(tmp_path)
    import data_prep.dedup as module

    calls = []
    hash_shard = module.hash_shard
    monkeypatch.setattr(module, "hash_shard", lambda *given: calls.append(1) or hash_shard(*given))
    dedup(photos, tmp_path, Dedup(), here)
    assert not calls and contents_of(tmp_path) == made
    (tmp_path / Index.load(tmp_path).shards[1].name).unlink()
    dedup(photos, tmp_path, Dedup(), here)
    assert len(calls) == 4 and contents_of(tmp_path) == made
    assert dedup(photos, tmp_path / "new", Dedup(), Run(dry=True)) is None and not (tmp_path / "new").exists()


def test_clip_finds_what_hashes_do_not(tmp_path, here, samples_of, tiny_clip):
    """A mirrored picture has another hash; a threshold below every cosine makes CLIP take all for one."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(seed=i), "PNG"))
    ingest(make_plan(tmp_path, 2), tmp_path / "set", Ingest(), here)
    dedup(tmp_path / "set", tmp_path / "all", Dedup(clip=tiny_clip, similarity=1.0), here)
    dedup(tmp_path / "set", tmp_path / "one", Dedup(clip=tiny_clip, similarity=1e-6), here)
    assert (len(samples_of(tmp_path / "all")), len(samples_of(tmp_path / "one"))) == (3, 1)
    with pytest.raises(UserError, match="cannot be loaded"):
        dedup(tmp_path / "set", tmp_path / "no", Dedup(clip=str(tmp_path / "absent")), here)


def test_bad_options_are_refused(photos, here, tmp_path):
    for stage, words in ((Dedup(distance=40), "--distance"), (Dedup(similarity=0), "--similarity")):
        with pytest.raises(UserError, match=words):
            dedup(photos, tmp_path, stage, here)
    with pytest.raises(UserError, match="same folder"):
        dedup(photos, photos, Dedup(), Run(Engine(workers=1)))
