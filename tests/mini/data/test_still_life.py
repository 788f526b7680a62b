import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from escdiff.data import schema
from escdiff.data.index import Index
from escdiff.data.shards import read_shard
from escdiff.mini.data import still_life
from escdiff.mini.data.still_life import (
    StillLifeOptions,
    make_shard,
    make_still_life,
    sample_group,
    shard_name,
    shard_sizes,
)
from escdiff.mini.world import world
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import Factors
from escdiff.support.errors import UserError

SMALL = StillLifeOptions(seed=1, size=32, shard_size=16)
ROOT = Path(__file__).parents[2]


def command(out: Path, *more: str) -> list[str]:
    options = ["--out", str(out), "--seed", "1", "--size", "32", "--shard-size", "16", *more]
    return [sys.executable, "-m", "data_prep", "still-life", *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_still_life(folder, 40, SMALL)
    return folder


def test_group_is_a_grid_of_shapes_and_materials_with_own_scenes():
    factors = np.array(sample_group(3, SMALL), dtype=object).reshape(4, 4)
    assert all(len({f.shape for f in row}) == 1 for row in factors)
    assert all(len({f.material for f in column}) == 1 for column in factors.T)
    assert len({f.scene for f in factors.flat}) == 16
    assert len({row[0].shape.family for row in factors}) == 4


def test_only_the_test_split_holds_held_out_combinations():
    def held(split: str) -> int:
        options = StillLifeOptions(seed=0, split=split)
        return sum(world.held_out(f.shape, f.material) for g in range(40) for f in sample_group(g, options))

    assert held("train") == held("val") == 0
    assert held("test") > 0


def test_samples_are_whole_and_render_again_from_their_factors(made):
    index = Index.load(made)
    assert (index.samples, len(index.shards)) == (48, 3)
    samples = list(read_shard(made / shard_name(1)))
    for sample in samples:
        schema.validate(sample, grouped=True)
    again = render([Factors.from_dict(samples[5]["json"]["factors"])], 32)
    difference = np.abs(again.image[0].astype(int) - np.asarray(samples[5]["png"]))
    assert difference.max() <= 1
    assert ((np.asarray(samples[5]["mask.png"]) > 127) == again.mask[0]).mean() > 0.99


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(made, tmp_path):
    subprocess.run(command(tmp_path, "--num", "40", "--workers", "2"), cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path) == contents(made)


def test_run_again_makes_only_what_is_missing_or_damaged(made, tmp_path, monkeypatch):
    make_still_life(tmp_path, 40, SMALL)
    (tmp_path / shard_name(0)).unlink()
    damaged = bytearray((tmp_path / shard_name(2)).read_bytes())
    damaged[700] ^= 1
    (tmp_path / shard_name(2)).write_bytes(damaged)
    (tmp_path / f".{shard_name(1)}.tmp").write_bytes(b"left by a killed run")
    numbers = []

    def counted(out, number, samples, options):
        numbers.append(number)
        return make_shard(out, number, samples, options)

    monkeypatch.setattr(still_life, "make_shard", counted)
    make_still_life(tmp_path, 40, SMALL)
    assert numbers == [0, 2]
    assert contents(tmp_path) == contents(made)


def test_enlarging_keeps_the_full_shards(made, tmp_path):
    make_still_life(tmp_path, 16, SMALL)
    first = (tmp_path / shard_name(0)).stat().st_mtime_ns
    make_still_life(tmp_path, 48, SMALL)
    assert (tmp_path / shard_name(0)).stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(made)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_bytes(made, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "--num", "40", "--workers", "1"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 60
    while not list(tmp_path.glob("*.tar")) and time.time() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Index.load(tmp_path, require_complete=False).complete or len(list(tmp_path.glob("*.tar"))) == 3
    (tmp_path / ".index.json.6e95d72c.tmp").write_text(
        "{", encoding="utf-8"
    )  # as of a kill while the index was written
    make_still_life(tmp_path, 40, SMALL)
    assert contents(tmp_path) == contents(made)


def test_depth_is_16_bit_distance(tmp_path):
    make_still_life(tmp_path, 16, StillLifeOptions(seed=1, size=32, shard_size=16, depth=True))
    sample = next(read_shard(tmp_path / shard_name(0)))
    depth = np.asarray(sample["depth.png"]) / sample["json"]["depth_scale"]
    mask = np.asarray(sample["mask.png"]) > 127
    assert depth[mask].min() > 3 and depth.max() < 8
    assert not depth[~mask].any()


@pytest.mark.parametrize(
    ("num", "options", "words"),
    [
        (0, SMALL, "--num"),
        (16, StillLifeOptions(size=33), "--size"),
        (16, StillLifeOptions(shard_size=20), "--shard-size"),
        (16, StillLifeOptions(split="dev"), "--split"),
        (16, StillLifeOptions(seed=-1), "--seed"),
        (10**12, StillLifeOptions(shard_size=16 * 10**10), "free"),
    ],
)
def test_bad_options_are_refused(tmp_path, num, options, words):
    with pytest.raises(UserError, match=words):
        make_still_life(tmp_path / "new", num, options)


def test_other_data_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="other options"):
        make_still_life(made, 40, StillLifeOptions(seed=2, size=32, shard_size=16))
    with pytest.raises(UserError, match="more than asked"):
        make_still_life(made, 16, SMALL)
    (tmp_path / "theirs.tar").write_bytes(b"")
    with pytest.raises(UserError, match="no index"):
        make_still_life(tmp_path, 16, SMALL)
    with pytest.raises(UserError, match="is a file"):
        make_still_life(tmp_path / "theirs.tar", 16, SMALL)


@pytest.mark.slow
def test_the_door_prints_one_sentence_and_exits_2(made):
    result = subprocess.run(command(made, "--num", "16"), cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().count("\n") == 0 and "more than asked" in result.stderr


def test_shard_sizes_round_up_to_whole_groups():
    assert shard_sizes(33, 32) == [32, 16]
    assert shard_sizes(1, 512) == [16]


def test_index_is_readable_json(made):
    values = json.loads((made / "index.json").read_text(encoding="utf-8"))
    assert [shard["samples"] for shard in values["shards"]] == [16, 16, 16]


MIXED = StillLifeOptions(seed=3, size=32, shard_size=16, scenes=0.3, figures=0.2, faces=0.2, edits=0.3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    make_still_life(folder, 96, MIXED)
    return folder


@pytest.mark.slow
def test_groups_of_scenes_hold_masks_and_boxes_of_each_thing(mixed):
    kinds = {still_life.group_kind(group, MIXED) for group in range(6)}
    assert len(kinds) >= 3
    for number in range(6):
        for sample in read_shard(mixed / shard_name(number)):
            schema.validate(sample, grouped=True)
            meta, things = sample["json"], len(sample["json"]["factors"].get("things", ()))
            assert (meta["shape_id"] == still_life.OUTSIDE) == (things > 0) == ("things.png" in sample)
            if not things:
                continue
            bits = np.asarray(sample["things.png"])
            mask = np.asarray(sample["mask.png"]) > 127
            assert ((bits & 15 > 0) == mask).all() and ((bits >> 4 > 0) == mask).all()
            assert len(meta["boxes"]) == things
            left, top, right, bottom = (round(v * 32) for v in meta["boxes"][0])
            first = bits & 1 > 0
            assert first[top:bottom, left:right].sum() == first.sum() > 0


def test_edits_come_in_pairs_with_their_instruction(mixed):
    group = next(group for group in range(50) if still_life.group_kind(group, MIXED) == "edits")
    samples = still_life.group_samples(group, MIXED)
    for before, after in zip(samples[::2], samples[1::2], strict=True):
        assert (before.meta["side"], after.meta["side"]) == ("before", "after")
        assert before.meta["instruction"] == after.meta["instruction"]
        assert before.picture != after.picture


@pytest.mark.slow
def test_two_workers_write_the_same_scenes_and_a_stopped_run_goes_on(mixed, tmp_path):
    shares = ["--scenes", "0.3", "--figures", "0.2", "--faces", "0.2", "--edits", "0.3", "--seed", "3"]
    run = command(tmp_path, *shares, "--workers", "2", "--num")
    subprocess.run([*run, "48"], cwd=ROOT, check=True, capture_output=True)
    (tmp_path / shard_name(1)).unlink()
    subprocess.run([*run, "96"], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path) == contents(mixed)


def test_a_tenth_is_nameless_and_of_the_seeds_for_training():
    options = StillLifeOptions(nameless=0.1)
    factors = [f for group in range(60) for f in sample_group(group, options)]
    shapes = {f.shape for f in factors if f.shape.family == world.THING}
    looks = {f.material.seed for f in factors if f.material.pattern == world.TEXTURED}
    assert 10 < len(shapes) < 45 and 10 < len(looks) < 45
    assert {world.purpose_of(seed) for seed in {s.seed for s in shapes} | looks} == {"train"}


def test_shares_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="--scenes 0.9"):
        make_still_life(tmp_path, 16, StillLifeOptions(scenes=0.9, faces=0.2))
    with pytest.raises(UserError, match="--nameless is 2"):
        make_still_life(tmp_path, 16, StillLifeOptions(nameless=2))
