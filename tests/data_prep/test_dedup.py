import numpy as np
import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.data.index import Index
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine

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


def test_what_a_stopped_check_has_kept_stays(photos, tmp_path, here):
    (tmp_path / "out" / ".work" / "verify").mkdir(parents=True)
    dedup(photos, tmp_path / "out", Dedup(), here)
    assert [path.name for path in (tmp_path / "out" / ".work").iterdir()] == ["verify"]


def test_a_file_in_the_place_of_the_folder_is_told(photos, tmp_path, here):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made a folder"):
        dedup(photos, tmp_path / "file", Dedup(), here)


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
    for stage, words in (
        (Dedup(distance=40), "--distance"),
        (Dedup(similarity=0), "--similarity"),
        (Dedup(colour=-1), "--colour"),
    ):
        with pytest.raises(UserError, match=words):
            dedup(photos, tmp_path, stage, here)
    with pytest.raises(UserError, match="same folder"):
        dedup(photos, photos, Dedup(), Run(Engine(workers=1)))


def discs(folder, **colours) -> None:
    """A disc before a grey ground, one picture of each colour; the hash of all is the same."""
    y, x = np.mgrid[:64, :64]
    inside = (y - 30) ** 2 + (x - 34) ** 2 < 300
    for name, colour in colours.items():
        picture = np.full((64, 64, 3), 60, np.uint8)
        picture[inside] = colour
        (folder / f"{name}.png").write_bytes(encoded(Image.fromarray(picture), "PNG"))


def test_the_same_shape_in_another_colour_stays_and_is_a_group(tmp_path, here, samples_of, rejects_of, tiny_clip):
    """Orange, blue and green of the same lightness; a second blue one, saved anew, is a duplicate."""
    discs(tmp_path, a=(214, 140, 60), b=(120, 150, 255), c=(110, 170, 110))
    blue = Image.open(tmp_path / "b.png")
    (tmp_path / "d.jpg").write_bytes(encoded(blue.resize((80, 80)), "JPEG", quality=85))
    (tmp_path / "e.png").write_bytes(encoded(noise(seed=3), "PNG"))
    ingest(make_plan(tmp_path, 2), tmp_path / "set", Ingest(), here)
    dedup(tmp_path / "set", tmp_path / "out", Dedup(), here)
    found = {s["json"]["source"]: s for s in samples_of(tmp_path / "out")}
    assert sorted(found) == ["a.png", "b.png", "c.png", "e.png"]
    assert {found[name]["json"]["group"] for name in ("a.png", "b.png", "c.png")} == {found["a.png"]["__key__"]}
    assert "group" not in found["e.png"]["json"]
    assert found["b.png"]["__key__"] in rejects_of(tmp_path / "out")[0]["reason"]
    dedup(tmp_path / "set", tmp_path / "clip", Dedup(clip=tiny_clip, similarity=1e-6), here)
    assert names(samples_of(tmp_path / "clip")) == ["a.png", "b.png", "c.png"]
    dedup(tmp_path / "set", tmp_path / "grey", Dedup(colour=0), here)
    assert names(samples_of(tmp_path / "grey")) == ["a.png", "e.png"]


def test_a_recoloured_picture_of_the_test_set_is_no_copy_of_it(tmp_path, here, samples_of):
    for name, colours in (("train", {"a": (214, 140, 60)}), ("test", {"b": (120, 150, 255)})):
        (tmp_path / name).mkdir()
        discs(tmp_path / name, **colours)
        ingest(make_plan(tmp_path / name, 2), tmp_path / f"{name}-set", Ingest(), here)
    dedup(tmp_path / "train-set", tmp_path / "out", Dedup(), here, against=tmp_path / "test-set")
    assert [("group" in s["json"]) for s in samples_of(tmp_path / "out")] == [False]
