import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.dataset import Run
from data_prep.verify import verify
from escdiff.data.index import Index
from escdiff.data.shards import encode_json, encode_png, write_shard
from escdiff.support.jobs.engine import Engine

HERE = Run(Engine(workers=1))
META = {"caption": "a mug", "source": "test", "licence": "CC0-1.0"}


def write(folder: Path, keys=("a", "b", "c"), picture: bytes | None = None, meta=META) -> None:
    shards = []
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        rows = [{"__key__": f"{number}{k}", "png": encode_png(noise), "json": encode_json(meta)} for k in keys]
        if picture is not None and number == 1:
            rows[1]["png"] = picture
        shards.append(write_shard(folder / f"s-{number}.tar", rows))
    Index("photos", shards=shards, planned=3).save(folder)


def problems(folder: Path, **options) -> dict[str, list[str]]:
    return verify(folder, HERE, **options).problems


def test_a_sound_dataset_passes_and_nothing_is_left_behind(tmp_path):
    write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    report = verify(tmp_path, HERE)
    assert (report.samples, report.shards, report.problems) == (9, 3, {}) and "as the index says" in str(report)
    assert sorted(tmp_path.rglob("*")) == before
    assert verify(tmp_path, Run(dry=True)) is None and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("decoded", [True, False])
def test_every_flipped_byte_is_found(tmp_path, decoded):
    write(tmp_path)
    path = tmp_path / "s-1.tar"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        found = problems(tmp_path, decoded=decoded)
        assert list(found) == ["s-1.tar"] and "SHA-256" in found["s-1.tar"][0], place


def test_all_damage_is_listed(tmp_path):
    write(tmp_path)
    (tmp_path / "s-0.tar").unlink()
    (tmp_path / "s-2.tar").write_bytes((tmp_path / "s-2.tar").read_bytes()[:1500])
    (tmp_path / "more.tar").write_bytes(b"")
    found = problems(tmp_path)
    assert found["s-0.tar"] == ["is missing"] and "1500 bytes" in found["s-2.tar"][0]
    assert found["more.tar"] == ["is not in the index"]


def test_samples_that_never_were_sound_are_named(tmp_path):
    write(tmp_path, picture=b"no picture")
    assert "1b of" in problems(tmp_path)["s-1.tar"][0] and not problems(tmp_path, decoded=False)
    write(tmp_path, meta={"caption": "x"})
    assert "lacks source, licence" in problems(tmp_path)["s-0.tar"][0]


def test_keys_are_distinct_and_the_dataset_is_finished(tmp_path):
    write(tmp_path)
    again = write_shard(tmp_path / "s-2.tar", [{"__key__": "1c", "png": b"", "json": b""}])
    index = Index.load(tmp_path)
    index.shards[2] = again
    index.planned = 4
    index.save(tmp_path)
    found = problems(tmp_path, decoded=False)
    assert "the key 1c that s-1.tar has too" in found["s-2.tar"][0]
    assert "unfinished, 3 of 4 shards" in found["index.json"][0]


def test_the_door_fails_and_says_what_to_do(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    path = tmp_path / "s-1.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(sys, "argv", ["data_prep", "verify", str(tmp_path), "--workers", "1"])
    with pytest.raises(SystemExit) as end:
        main()
    problems = capsys.readouterr().err
    assert end.value.code == 2 and "s-1.tar: its SHA-256 differs" in problems
    assert problems.strip().splitlines()[-1].endswith("run the command that made them again")
