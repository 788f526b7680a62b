import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trouble import BAD, GOOD, encoded, make_trouble, noise
from typer.testing import CliRunner

from data_prep.__main__ import app
from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.limits import Limits
from escdiff.data.shards import read_shard, write_shard
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine

ROOT = Path(__file__).parents[2]
HERE = Run(Engine(workers=1), max_bad=1.0)


def samples(folder: Path) -> list[dict]:
    return [s for shard in Index.load(folder).shards for s in read_shard(folder / shard.name)]


def quarantine(folder: Path) -> list[dict]:
    files = sorted((folder / "quarantine").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def trouble(tmp_path_factory) -> Path:
    return make_trouble(tmp_path_factory.mktemp("trouble") / "pictures")


@pytest.fixture(scope="module")
def made(trouble, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    ingest(make_plan(trouble, 4), out, Ingest(), HERE)
    return out


def test_every_picture_is_a_sample_or_in_quarantine_with_a_reason(made):
    found = samples(made)
    for sample in found:
        schema.validate(sample)
        assert sample[schema.image_key(sample)].mode == "RGB"
    assert sorted(s["json"]["source"] for s in found) == list(GOOD)
    bad = {line["source"]: line for line in quarantine(made)}
    assert sorted(bad) == list(BAD) and all(line["kind"] == "bad" and line["key"] for line in bad.values())
    words = {"bomb.png": "megapixels", "cut.jpg": "truncated", "empty.png": "empty", "text.png": "not an image"}
    assert all(word in bad[name]["reason"] for name, word in words.items())


def test_oddities_are_converted_and_recorded(made):
    by_name = {s["json"]["source"]: s for s in samples(made)}
    assert by_name["turned.jpg"]["jpg"].size == (48, 60) and by_name["turned.jpg"]["json"]["original"]["turned"]
    assert by_name["cmyk.jpg"]["json"]["original"]["mode"] == "CMYK"
    assert by_name["animated.gif"]["json"]["original"]["frames"] == 2
    assert np.asarray(by_name["sixteen.png"]["png"]).std() > 50
    rgba = by_name["rgba.png"]
    assert rgba["png"].getpixel((0, 0)) == (255, 255, 255) and rgba["json"]["mask"] == "alpha"
    assert rgba[schema.MASK].getpixel((30, 20)) == 255 and rgba[schema.MASK].getpixel((0, 0)) == 0


def test_what_lies_beside_a_picture_belongs_to_it(made):
    plain = next(s for s in samples(made) if s["json"]["source"] == "plain.png")
    assert plain["json"]["caption"] == "a photo of a blue vase"
    assert (plain["json"]["category"], plain["json"]["licence"], plain["json"]["mask"]) == ("vase", "CC0-1.0", "given")
    assert plain[schema.MASK].size == plain["png"].size


def test_plain_pictures_keep_their_bytes_unless_they_are_large(trouble, made, tmp_path):
    def entry(folder, name):
        for shard in Index.load(folder).shards:
            with tarfile.open(folder / shard.name) as tar:
                texts = {i.name: tar.extractfile(i).read() for i in tar}
            for key in [n[:-5] for n in texts if n.endswith(".json")]:
                if json.loads(texts[f"{key}.json"])["source"] == name:
                    return texts[f"{key}.{name[-3:]}"]
        raise AssertionError(name)

    for name in ("plain.jpg", "plain.png"):
        assert entry(made, name) == (trouble / name).read_bytes()
    ingest(make_plan(trouble, 100), tmp_path, Ingest(max_side=40), HERE)
    assert Image.open(io.BytesIO(entry(tmp_path, "plain.jpg"))).size == (40, 32)


@pytest.mark.slow
def test_two_processes_and_a_second_run_give_the_same_bytes(trouble, made, tmp_path):
    arguments = ["ingest", str(trouble), "--out", str(tmp_path / "x")]
    arguments += ["--shard-size", "4", "--max-bad", "1", "--workers", "2"]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert "5 to make, from 19 samples" in dry.stdout and not (tmp_path / "x").exists()
    command = [sys.executable, "-m", "data_prep", *arguments]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert contents(tmp_path / "x") == contents(made)
    assert "13 samples in 5 shards, 6 bad and 0 left out" in first.stdout and "1 .heic, 1 .md" in first.stderr
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "x").glob("*.tar")}
    ingest(make_plan(trouble, 4), tmp_path / "x", Ingest(), HERE)
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "x").glob("*.tar")}


def test_only_missing_shards_are_made_again(trouble, made, tmp_path):
    ingest(make_plan(trouble, 4), tmp_path, Ingest(), HERE)
    for name in ("photos-000001.tar", "quarantine/photos-000001.jsonl"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / ".photos-000001.tar.tmp").write_bytes(b"left by a killed run")
    whole = (tmp_path / "photos-000003.tar").stat().st_mtime_ns
    ingest(make_plan(trouble, 4), tmp_path, Ingest(), HERE)
    assert contents(tmp_path) == contents(made)
    assert (tmp_path / "photos-000003.tar").stat().st_mtime_ns == whole


def test_too_many_bad_ones_stop_the_run(trouble, tmp_path):
    with pytest.raises(UserError, match=r"6 of 19 samples are bad, more than the share of 0\.1"):
        ingest(make_plan(trouble, 4), tmp_path, Ingest(), Run(Engine(workers=1)))
    with pytest.raises(UserError, match="unfinished"):
        Index.load(tmp_path)
    ingest(make_plan(trouble, 4), tmp_path, Ingest(), HERE)
    assert Index.load(tmp_path).samples == 13


def test_slow_pictures_are_stopped(tmp_path, monkeypatch):
    import data_prep.ingest as module

    def slow(data, name, limit):
        while name == "b.png":
            pass
        return decode(data, name, limit)

    decode = module.decode_picture
    monkeypatch.setattr(module, "decode_picture", slow)
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encoded(noise(), "PNG"))
    run = Run(Engine(workers=1), max_bad=0.5, seconds=0.2)
    ingest(make_plan(tmp_path, 4), tmp_path / "out", Ingest(), run)
    assert len(samples(tmp_path / "out")) == 2
    assert "took longer than 0.2 s" in quarantine(tmp_path / "out")[0]["reason"]


def test_small_and_heavy_pictures(tmp_path):
    for side in (20, 40, 60):
        (tmp_path / f"{side}.png").write_bytes(encoded(noise(side, side), "PNG"))
    heavy = (tmp_path / "60.png").stat().st_size - 1
    stage = Ingest(Limits(max_bytes=heavy), min_side=32)
    ingest(make_plan(tmp_path, 4), tmp_path / "out", stage, HERE)
    assert [s["json"]["source"] for s in samples(tmp_path / "out")] == ["40.png"]
    assert {q["source"]: q["kind"] for q in quarantine(tmp_path / "out")} == {"20.png": "left out", "60.png": "bad"}


def test_lists_name_pictures_and_facts(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(), "PNG"))
    rows = [{"path": "in/a.png", "text": "a, b", "label": "mug"}, {"path": "in/absent.png", "text": "c", "label": "x"}]
    (tmp_path / "a.csv").write_text('path,text,label\nin/a.png,"a, b",mug\nin/absent.png,c,x\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("path\ttext\tlabel\nin/a.png\ta, b\tmug\nin/absent.png\tc\tx\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for kind in ("csv", "tsv", "jsonl"):
        ingest(make_plan(tmp_path / f"a.{kind}", 4), tmp_path / kind, Ingest(), HERE)
        (sample,) = samples(tmp_path / kind)
        assert (sample["json"]["caption"], sample["json"]["category"]) == ("a, b", "mug")
        assert "No such file" in quarantine(tmp_path / kind)[0]["reason"]
    (tmp_path / "b.csv").write_text("name\nx\n", encoding="utf-8")
    with pytest.raises(UserError, match="row 1 of .* names no picture in its columns name"):
        make_plan(tmp_path / "b.csv", 4)


def test_parquet_lists(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    parquet.write_table(pyarrow.table({"path": ["a.png"], "caption": ["a mug"]}), tmp_path / "a.parquet")
    ingest(make_plan(tmp_path / "a.parquet", 4), tmp_path / "out", Ingest(), HERE)
    assert samples(tmp_path / "out")[0]["json"]["caption"] == "a mug"


def test_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cup", "mug"])})
    stored = [{"bytes": encoded(noise(seed=i), "PNG"), "path": None} for i in range(5)]
    stored[2] = {"bytes": stored[2]["bytes"][:50], "path": None}
    rows = datasets.Dataset.from_dict({"image": stored, "label": [0, 1, 0, 1, 0]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="has the splits train"):
        make_plan(tmp_path / "saved", 2)
    ingest(make_plan(tmp_path / "saved", 2, split="train"), tmp_path / "out", Ingest(), HERE)
    assert [s["json"]["category"] for s in samples(tmp_path / "out")] == ["cup", "mug", "mug", "cup"]
    assert [q["source"] for q in quarantine(tmp_path / "out")] == ["saved#2"]


def test_missing_libraries_are_named_with_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs the library pyarrow.*escdiff\[prep\]"):
        make_plan(tmp_path / "a.parquet", 4)


def test_foreign_shards_are_read_as_far_as_they_are_sound(tmp_path):
    rows = [{"__key__": f"x/{i}", "jpg": encoded(noise(seed=i), "JPEG"), "txt": b"a mug"} for i in range(6)]
    rows[4] = {"__key__": "x/4", "txt": b"no picture", "json": b"[]"}
    write_shard(tmp_path / "in.tar", rows)
    data = bytearray((tmp_path / "in.tar").read_bytes())
    data[data.index(b"x/1.jpg")] ^= 1
    (tmp_path / "in.tar").write_bytes(data)
    (tmp_path / "none.tar").write_bytes(b"x" * 3000)
    ingest(make_plan(tmp_path, 4), tmp_path / "out", Ingest(), HERE)
    found = samples(tmp_path / "out")
    assert [s["json"]["source"] for s in found] == ["in.tar#x/0", "in.tar#x/2", "in.tar#x/3", "in.tar#x/5"]
    assert found[0]["json"]["caption"] == "a mug"
    reasons = [q["reason"] for q in quarantine(tmp_path / "out")]
    assert len(reasons) == 4 and "damaged header in in.tar at byte" in reasons[0]
    assert "in.tar#x/1 has no picture" in reasons[1] and "in.tar#x/4 has no picture" in reasons[2]


def test_bad_requests_are_refused(trouble, made, tmp_path):
    other = Ingest(max_side=99)
    with pytest.raises(UserError, match="holds other data .*max_side was 1024, is 99"):
        ingest(make_plan(trouble, 4), made, other, HERE)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match="no index of this command"):
        ingest(make_plan(trouble, 4), tmp_path / "theirs", Ingest(), HERE)
    for source, words in ((tmp_path / "no", "nothing at"), (trouble / "notes.md", "not a kind of input")):
        with pytest.raises(UserError, match=words):
            make_plan(source, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        make_plan(tmp_path / "empty", 4)
    with pytest.raises(UserError, match="no sample is left"):
        (tmp_path / "empty" / "a.png").write_bytes(b"x")
        ingest(make_plan(tmp_path / "empty", 4), tmp_path / "none", Ingest(), HERE)
    for bad, words in ((Run(max_bad=2), "--max-bad"), (Run(Engine("spark")), "--engine"), (Run(seconds=-1), "--sec")):
        with pytest.raises(UserError, match=words):
            ingest(make_plan(trouble, 4), tmp_path / "new", Ingest(), bad)


def test_masks_of_another_picture_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise(60, 48), "PNG"))
    (tmp_path / "a.mask.png").write_bytes(encoded(Image.new("L", (48, 60)), "PNG"))
    with pytest.raises(UserError, match="no sample is left"):
        ingest(make_plan(tmp_path / "a.png", 4), tmp_path / "out", Ingest(), HERE)
    assert "other proportions (48x60 and 60x48)" in quarantine(tmp_path / "out")[0]["reason"]
