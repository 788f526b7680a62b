"""Damaged pictures and shards: no crash, no hang, every bad one in quarantine, nothing else lost."""

import tarfile
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from trouble import GOOD, encoded, make_trouble, noise

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from data_prep.verify import verify
from escdiff.data.shards import encode_json, write_shard
from escdiff.data.tar import BLOCK
from escdiff.support.jobs.engine import Engine

RUN = Run(Engine(workers=1), max_bad=1.0, seconds=5.0)
Touched = list[tuple[int, int]]  # byte ranges of the original


@dataclass(frozen=True)
class Timed(Ingest):
    """Ingest that notes how long each picture takes, in seconds."""

    times: list[float] = field(default_factory=list, compare=False)

    def convert(self, found):
        start = time.perf_counter()
        try:
            return super().convert(found)
        finally:
            self.times.append(time.perf_counter() - start)


def damage(data: bytes, rng: np.random.Generator) -> tuple[bytes, Touched]:
    """Flip bits, cut off, delete, insert, blank or repeat; what was done to which bytes."""
    kind = rng.integers(6)
    a, b = sorted(int(v) for v in rng.integers(0, len(data) + 1, 2))
    b = min(b, a + int(rng.choice([1, 7, 100, 512, 1024, 5000])))
    if kind == 0:
        changed, places = bytearray(data), rng.integers(0, len(data), rng.integers(1, 30)).tolist()
        for place in places:
            changed[place] ^= 1 << int(rng.integers(8))
        return bytes(changed), [(place, place + 1) for place in places]
    if kind == 1:
        return data[:a], [(a, len(data))]
    if kind == 2:
        return data[:a] + data[b:], [(a, b)]
    if kind == 3:
        return data[:a] + rng.bytes(b - a) + data[a:], [(a, a)]
    if kind == 4:
        return data[:a] + bytes(b - a) + data[b:], [(a, b)]
    return data[:b] + data[a:b] + data[b:], [(b, b)]


def test_1000_fuzzed_images(tmp_path, samples_of, rejects_of):
    count, rng = 1000, np.random.default_rng(0)
    make_trouble(tmp_path / "seeds")
    seeds = [(tmp_path / "seeds" / name).read_bytes() for name in GOOD]
    (tmp_path / "in").mkdir()
    for i in range(count):
        data = damage(seeds[i % len(seeds)], rng)[0]
        suffix = GOOD[i % len(seeds)].split(".")[1]
        (tmp_path / "in" / f"{i:04d}.{suffix}").write_bytes(data)
    controls = {f"{i:04d}-sound.png": noise(seed=i) for i in range(0, count, 20)}
    for name, picture in controls.items():
        (tmp_path / "in" / name).write_bytes(encoded(picture, "PNG"))
    stage = Timed()
    ingest(make_plan(tmp_path / "in", 50), tmp_path / "out", stage, RUN)
    good = {s["json"]["source"]: s for s in samples_of(tmp_path / "out")}
    bad = {r["source"]: r["reason"] for r in rejects_of(tmp_path / "out")}
    assert len(good) + len(bad) == count + len(controls) and not set(good) & set(bad)
    assert all(bad.values()) and len(bad) > count / 10 and max(stage.times) < 5
    for name, picture in controls.items():
        assert np.array_equal(np.asarray(good[name]["png"]), np.asarray(picture))
    assert not verify(tmp_path / "out", RUN).problems


@pytest.mark.slow
def test_200_fuzzed_shards(tmp_path, samples_of, rejects_of):
    count, rng = 200, np.random.default_rng(1)
    pictures = {f"s{i:02d}": encoded(noise(40, 40, seed=i), "PNG") for i in range(10)}
    meta = encode_json({"caption": "a thing"})
    write_shard(tmp_path / "whole.tar", [{"__key__": k, "png": p, "json": meta} for k, p in pictures.items()])
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        entries = [(i.name[:3], i.offset, i.offset_data + -(-i.size // BLOCK) * BLOCK) for i in tar]
    (tmp_path / "in").mkdir()
    untouched, changed = {}, []
    for i in range(count):
        name = f"{i:03d}.tar"
        data, touched = damage(whole, rng)
        (tmp_path / "in" / name).write_bytes(data)
        missing = max(len(whole) - len(data), 0)
        if missing and touched[0][1] < len(whole):
            # An entry that lost bytes takes as many behind its end, be it a whole neighbour.
            ends = [hi for _, lo, hi in entries if touched[0][0] < hi and touched[0][1] > lo]
            touched += [(hi, hi + missing) for hi in ends]
        # An insertion (a, a) touches the entry that it splits.
        hit = {k for k, lo, hi in entries for a, b in touched if (a < hi and b > lo) or (a == b and lo < a < hi)}
        untouched[name] = set(pictures) - hit
        if data != whole:
            changed.append(name)
    stage = Timed(min_side=0)
    ingest(make_plan(tmp_path / "in", 50), tmp_path / "out", stage, RUN)
    found: dict[str, dict[str, tuple]] = {name: {} for name in untouched}
    for sample in samples_of(tmp_path / "out"):
        name, _, key = sample["json"]["source"].partition("#")
        found[name].setdefault(key, (np.asarray(sample["png"]), sample["json"]["caption"]))
    lost = {(name, key) for name, keys in untouched.items() for key in keys - set(found[name])}
    assert not lost
    sound = {key: np.asarray(noise(40, 40, seed=i)) for i, key in enumerate(pictures)}
    for name, keys in untouched.items():
        for key in keys:
            picture, caption = found[name][key]
            assert np.array_equal(picture, sound[key]) and caption == "a thing", (name, key)
    quarantined = {r["source"].partition("#")[0] for r in rejects_of(tmp_path / "out")}
    for name in changed:  # what lost a sample says so
        assert len(found[name]) == 10 or name in quarantined, name
    assert max(stage.times) < 5 and not verify(tmp_path / "out", RUN).problems
