"""A shard that is stopped half way goes on there, shows how far it is, and ends in the same bytes."""

import time
from dataclasses import dataclass, field

import pytest
from trouble import encoded, noise

from data_prep import dataset, parts
from data_prep.ingest import Ingest, ingest
from data_prep.parts import Part, items_in
from data_prep.plans import make_plan
from data_prep.reject import Reject
from escdiff.data.shards import write_shard
from escdiff.support import progress


@dataclass(frozen=True)
class Stopped(Ingest):
    """Ingest that notes what it converts and is interrupted before picture `at`."""

    at: int = -1
    seen: list[str] = field(default_factory=list, compare=False)

    def options(self):
        return Ingest.options(self)

    def convert(self, found):
        if len(self.seen) == self.at:
            raise KeyboardInterrupt
        self.seen.append(found["__source__"])
        return super().convert(found)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        data = encoded(noise(seed=i), "PNG")
        (folder / f"{i}.png").write_bytes(data[:300] if i == 2 else data)
    return folder


def test_a_stopped_shard_goes_on_where_it_was(pictures, tmp_path, here, contents_of):
    plan = make_plan(pictures, 100)
    ingest(plan, tmp_path / "whole", Ingest(), here)
    first, second = Stopped(at=5), Stopped()
    with pytest.raises(KeyboardInterrupt):
        ingest(plan, tmp_path / "out", first, here)
    assert items_in(tmp_path / "out" / "quarantine" / ".photos-000000.items") == 5
    ingest(plan, tmp_path / "out", second, here)
    assert first.seen + second.seen == [f"{i}.png" for i in range(8)]
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["cut", "gone", "torn line", "no journal"])
def test_what_a_crash_of_the_machine_spoilt_is_made_again(pictures, tmp_path, here, contents_of, harm):
    plan = make_plan(pictures, 100)
    ingest(plan, tmp_path / "whole", Ingest(), here)
    with pytest.raises(KeyboardInterrupt):
        ingest(plan, tmp_path / "out", Stopped(at=5), here)
    part = tmp_path / "out" / ".photos-000000.tar.tmp"
    journal = tmp_path / "out" / "quarantine" / ".photos-000000.items"
    if harm == "cut":
        part.write_bytes(part.read_bytes()[:2000])
    elif harm == "torn line":
        journal.write_bytes(journal.read_bytes()[:-3])
    else:
        (part if harm == "gone" else journal).unlink()
    ingest(plan, tmp_path / "out", Ingest(), here)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_a_part_is_written_as_webdataset_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SYNC_EVERY", 0.0)
    samples = [{"__key__": f"{'ü' * 60}{i}", "png": bytes(700 * i), "mask.png": b"m", "json": b"{}"} for i in range(9)]
    for folder in ("whole", "part"):
        (tmp_path / folder).mkdir()
    wanted = write_shard(tmp_path / "whole" / "a.tar", samples)
    for start in range(0, 9, 3):
        part = Part(tmp_path / "part" / "a.tar", tmp_path / "part" / ".a.items")
        assert part.items == start + bool(start)
        for item in samples[start : start + 3]:
            part.add(item)
        if not start:
            part.add(Reject("x", "why"))
        part.close()
    part = Part(tmp_path / "part" / "a.tar", tmp_path / "part" / ".a.items")
    assert part.rejects == [Reject("x", "why")] and part.finish() == wanted
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["a.tar"]


def test_progress_inside_a_shard_is_shown(pictures, tmp_path, here, monkeypatch, capsys):
    monkeypatch.setattr(parts, "SYNC_EVERY", 0.0)
    monkeypatch.setattr(dataset, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(progress, "SAY_EVERY", 0.0)

    class Slow(Ingest):
        def convert(self, found):
            time.sleep(0.1)
            return super().convert(found)

    ingest(make_plan(pictures, 100), tmp_path / "out", Slow(), here)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ingest: ")]
    assert len(said) > 2 and said[-1] == "ingest: 8 of 8" and said[0] != said[-1]
