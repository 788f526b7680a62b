"""Inputs as the world writes them come in whole, or it is said what does not."""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.data.index import Index
from escdiff.data.shards import encode_json, write_shard
from escdiff.support.errors import UserError


@pytest.fixture
def taken(here, tmp_path, samples_of, rejects_of):
    """taken(source) -> (source to json of every sample, reasons in quarantine), of `ingest`."""

    def take(source: Path, **plan) -> tuple[dict[str, dict], list[str]]:
        out = tmp_path / "out"
        ingest(make_plan(source, 4, **plan), out, Ingest(), here)
        found = samples_of(out)
        assert len({s["__key__"] for s in found}) == len(found) == len({s["json"]["source"] for s in found})
        return {s["json"]["source"]: s["json"] for s in found}, [line["reason"] for line in rejects_of(out)]

    return take


def pictures(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        form = "JPEG" if name.endswith("jpg") else "PNG"
        (folder / name).write_bytes(encoded(noise(seed=seed), form))
    return folder


def pack(path: Path, folder: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, name, recursive=False)
    return path


def test_names_as_tar_writes_them_for_a_whole_folder(tmp_path, taken):
    source = pictures(tmp_path / "p", "0001.png", "0002.png", "x/0003.png")
    for name in ("0001", "0002", "x/0003"):
        (source / f"{name}.txt").write_text(f"a mug {name}", encoding="utf-8")
    names = ["./0001.png", "./0001.txt", "./0002.png", "./0002.txt", "./x/0003.png", "./x/0003.txt"]
    found, bad = taken(pack(tmp_path / "a.tar", source, names))
    assert {name: meta["caption"] for name, meta in found.items()} == {
        "a.tar#0001": "a mug 0001", "a.tar#0002": "a mug 0002", "a.tar#x/0003": "a mug x/0003",
    } and not bad  # fmt: skip


def test_what_is_passed_over_in_a_tar_is_said(tmp_path, taken):
    source = pictures(tmp_path / "p", "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../up.png", "/root.png", "__own__.png", "a.png", ".hidden.png", "__MACOSX/b.png"):
            info = tar.gettarinfo(source / "a.png", name)
            info.name = name
            with open(source / "a.png", "rb") as file:
                tar.addfile(info, file)
    found, bad = taken(tmp_path / "a.tar")
    assert list(found) == ["a.tar#a"] and len(bad) == 3
    assert all(name in reason for name, reason in zip(("../up.png", "/root.png", "__own__.png"), bad, strict=True))


def test_texts_apart_from_their_pictures_are_noticed(tmp_path, taken):
    """`tar` takes the files of a folder in any order; webdataset groups neighbours only."""
    source = pictures(tmp_path / "p", "1.png", "2.png")
    for number in (1, 2):
        (source / f"{number}.txt").write_text("a mug", encoding="utf-8")
    with pytest.raises(UserError, match="no sample is left"):
        taken(pack(tmp_path / "a.tar", source, ["1.png", "2.png", "1.txt", "2.txt"]))


def test_pictures_of_the_same_stem_are_all_taken(tmp_path, taken):
    source = pictures(tmp_path / "p", "a.jpg", "a.png", "b.jpg")
    found, bad = taken(source)
    assert set(found) == {"a.jpg", "a.png", "b.jpg"} and not bad


def test_pictures_of_the_same_stem_in_a_tar_are_all_taken(tmp_path, taken):
    rows = [{"__key__": "a", "jpg": encoded(noise(), "JPEG"), "png": encoded(noise(seed=1), "PNG"), "txt": b"x"},
            {"__key__": "b", "webp": encoded(noise(seed=2), "WEBP")}]  # fmt: skip
    write_shard(tmp_path / "a.tar", rows)
    found, bad = taken(tmp_path / "a.tar")
    assert set(found) == {"a.tar#a.jpg", "a.tar#a.png", "a.tar#b"} and not bad


def test_shared_sidecars_are_said(tmp_path):
    source = pictures(tmp_path / "p", "a.jpg", "a.png", "b.jpg")
    (source / "a.txt").write_text("a mug", encoding="utf-8")
    assert make_plan(source, 4).remarks == ("2 pictures share their texts or masks with another one of the same stem",)


def test_captions_are_read_in_the_encodings_that_editors_write(tmp_path, taken):
    source, text = pictures(tmp_path / "p", *(f"{n}.png" for n in "abcdef")), "a mug in a café"
    for name, encoding in zip("abcd", ("utf-8-sig", "utf-16", "cp1252", "utf-8"), strict=True):
        (source / f"{name}.txt").write_bytes(text.encode(encoding))
    (source / "e.txt").write_bytes("кружка".encode("cp1251"))
    (source / "f.json").write_text("{", encoding="utf-8")
    found, bad = taken(source)
    assert {name: meta["caption"] for name, meta in found.items()} == {f"{n}.png": text for n in "abcd"}
    assert len(bad) == 2 and "save it as UTF-8" in bad[0] and "cannot be read" in bad[1]


def test_lists_are_read_in_the_encodings_that_sheets_write(tmp_path, taken):
    pictures(tmp_path, "a.png")
    (tmp_path / "a.csv").write_bytes("path,text\na.png,a mug in a café\n".encode("utf-16"))
    assert taken(tmp_path / "a.csv")[0]["a.png"]["caption"] == "a mug in a café"
    (tmp_path / "b.csv").write_bytes("path,text\na.png,a mug in a café\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"b\.csv cannot be read .*utf-8"):
        make_plan(tmp_path / "b.csv", 4)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_imagefolder_comes_with_its_table(tmp_path, taken, name):
    source = pictures(tmp_path / "p", "train/1.png", "train/sub/2.png", "train/3.png")
    rows = [("1.png", "a red mug"), ("sub/2.png", "a blue dog"), ("lost.png", "gone")]
    text = "\n".join(json.dumps({"file_name": file, "text": told}) for file, told in rows)
    if name.endswith("csv"):
        text = "file_name,text\n" + "\n".join(",".join(row) for row in rows)
    (source / "train" / name).write_text(text, encoding="utf-8")
    assert make_plan(source, 4).remarks == ("1 pictures have no row in the tables beside them",)
    found, bad = taken(source)
    captions = {"train/1.png": "a red mug", "train/sub/2.png": "a blue dog", "train/3.png": ""}
    assert {file: meta["caption"] for file, meta in found.items()} == captions
    assert len(bad) == 1 and "lost.png" in bad[0]


def test_a_table_without_file_names_is_refused(tmp_path):
    source = pictures(tmp_path / "p", "1.png")
    for row in ('{"text": "a mug"}', '["1.png"]', '{"image": {"bytes": "x"}}'):
        (source / "metadata.jsonl").write_text(row, encoding="utf-8")
        with pytest.raises(UserError, match=r"metadata\.jsonl"):
            make_plan(source, 4)


def test_kohyas_captions(tmp_path, taken):
    source = pictures(tmp_path / "p", "10_mug/a.png", "10_mug/b.png")
    (source / "10_mug" / "a.caption").write_text("a red mug", encoding="utf-8")
    (source / "10_mug" / "b.txt").write_text("blue, mug", encoding="utf-8")
    assert make_plan(source, 4).remarks == ()
    found, _ = taken(source)
    assert [meta["caption"] for meta in found.values()] == ["a red mug", "blue, mug"]


def test_what_img2dataset_writes(tmp_path, taken):
    """Its webdataset: the caption in a .txt and in the json, where it is null when the list had none."""
    facts = {"url": "u", "key": "000000000", "status": "success", "caption": None, "license": "CC0-1.0"}
    row = {"__key__": "000000000", "jpg": encoded(noise(), "JPEG"), "txt": b"a red mug", "json": encode_json(facts)}
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "00000.tar", [row])
    for name in ("00000.parquet", "00000_stats.json"):
        (tmp_path / "in" / name).write_bytes(b"{}")
    found, bad = taken(tmp_path / "in")
    meta = found["00000.tar#000000000"]
    assert (meta["caption"], meta["licence"], meta["url"]) == ("a red mug", "CC0-1.0", "u") and not bad


def test_shards_and_pictures_of_one_folder_are_both_read(tmp_path, taken):
    source = pictures(tmp_path / "p", "a.png", "sub/b.jpg")
    pack(source / "old.tar", source, ["a.png"])
    pack(source / "sub" / "older.tar", source, ["sub/b.jpg"])
    found, bad = taken(source)
    assert set(found) == {"old.tar#a", "older.tar#sub/b", "a.png", "sub/b.jpg"} and not bad


def test_a_dataset_inside_its_own_source_is_not_read_again(tmp_path, here):
    source = pictures(tmp_path / "p", "a.png")
    plan = make_plan(source, 4)
    ingest(plan, source / "set", Ingest(), here)
    assert make_plan(source, 4) == plan and Index.load(source / "set").samples == 1


def test_folders_without_pictures_say_what_they_hold(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"holds no pictures but 1 \.parquet"):
        make_plan(tmp_path, 4)


def test_masks_come_along(tmp_path, here, samples_of):
    source = pictures(tmp_path / "p", "a.jpg")
    (source / "a.mask.png").write_bytes(encoded(Image.new("L", (60, 48), 255), "PNG"))
    ingest(make_plan(source, 4), tmp_path / "out", Ingest(), here)
    assert samples_of(tmp_path / "out")[0]["json"]["mask"] == "given"
