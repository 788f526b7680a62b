"""From jobs to a finished dataset: shards, index and quarantine, resumable per shard.

A stage says how one job becomes samples. Everything else is here and the same for all: what was done is not
done again, a shard's name appears when it is whole, what cannot be used is written down with its reason, and
too much of that stops the run.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import typer

from data_prep.guard import Guard, blame, clear_crumb
from data_prep.parts import Part, items_in, journal_of
from data_prep.reject import BAD, LEFT_OUT, LeftOut, Reject
from escdiff.data import index as indexing
from escdiff.data import schema
from escdiff.data.index import Index, Shard, sha256
from escdiff.data.pictures import expand
from escdiff.data.shards import decode, decode_entry, read_raw
from escdiff.support.errors import UserError
from escdiff.support.files import check_space, write_atomic
from escdiff.support.jobs.engine import Engine
from escdiff.support.progress import sample_progress

QUARANTINE, WORK = "quarantine", ".work"
JUDGED_FROM = 100  # samples, before which a run is not stopped for its bad ones, except at its end
SAVE_EVERY = 5.0  # seconds between savings of a long index
LOOK_EVERY = 2.0  # seconds between looks at how far the shards are


@dataclass(frozen=True)
class Job:
    """One shard to make: its name without `.tar`, about how many samples (0: not known), and from what."""

    name: str
    samples: int
    source: Any


@dataclass(frozen=True)
class Input:
    """A shard of another dataset."""

    path: str
    sha256: str


class Stage(Protocol):
    """Picklable; `options` is all that the bytes depend on besides the input.

    `samples` gives one item for each sample of its input and leaves `guard.done` of them to `each_sample` to skip.
    """

    name: str

    def options(self) -> dict[str, Any]:
        """Options that the index keeps, by which a resumed run recognises its data."""

    def samples(self, job: Job, guard: Guard) -> Iterator[dict[str, Any] | Reject]:
        """A job's finished samples in order, a `Reject` where one is left out."""


@dataclass(frozen=True)
class Run:
    """How to run a stage; no byte of the result depends on it."""

    engine: Engine = field(default_factory=Engine)
    max_bad: float = 0.1  # share of bad samples above which the run stops
    seconds: float = 5.0  # per sample
    dry: bool = False  # say what would be done and write nothing

    def validate(self) -> None:
        """Raise `UserError` for values out of range."""
        self.engine.validate()
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"--max-bad is {self.max_bad}; give a share from 0 to 1")
        if self.seconds < 0:
            raise UserError(f"--seconds is {self.seconds}; give 0 (no limit) or more")

    @property
    def alone(self) -> bool:
        """Whether workers are processes of their own."""
        return self.engine.kind != "local" or self.engine.workers != 1


@dataclass
class Done:
    """A finished shard, and how many samples are not in it."""

    shard: Shard
    bad: int
    left_out: int


def make_dataset(stage: Stage, out: Path, jobs: Sequence[Job], run: Run, made_from: dict, needed: int = 0) -> Index:
    """Run a stage over its jobs into the folder `out`; finished shards are kept.

    Args:
        made_from: what the jobs were made of; another value asks for another folder.
        needed: bytes the result will take at least.

    Raises:
        UserError: other data in `out`, no space, too many bad samples, or nothing left.
    """
    run.validate()
    out = expand(out)
    options = {"stage": stage.name, **stage.options(), "made_from": made_from}
    index = open_index(out, options, len(jobs), run.dry)
    done = {s.name: s for s in index.shards if stands(out / s.name, s)}
    todo = [job for job in jobs if f"{job.name}.tar" not in done]
    if run.dry:
        counts = f"{len(jobs)} shards, {len(done)} of them there already, {len(todo)} to make"
        samples = sum(job.samples for job in todo)
        typer.echo(f"{stage.name}: {counts}" + (f", from {samples} samples" if samples else "") + f": {out}")
        return index
    check_space(out, needed * len(todo) // max(len(jobs), 1))
    clear_killed(out, {f".{job.name}.tar.tmp" for job in todo if journal_of(out / QUARANTINE, job.name).exists()})
    clear_killed(out / QUARANTINE)
    tally = _Tally(run.max_bad, out)
    for name, shard in done.items():
        tally.add(shard.samples, *_counts(out, name.removesuffix(".tar")))
    saved = 0.0
    unit = (lambda job: job.samples) if all(job.samples for job in jobs) else (lambda job: 1)
    total, left_over = sum(map(unit, jobs)), sum(map(unit, todo))
    (out / QUARANTINE).mkdir(exist_ok=True)
    work = partial(make_shard, stage, out, run.seconds, run.alone)
    with sample_progress(stage.name, total, total - left_over) as advance, Watch(out, todo, unit, advance) as watch:
        for job, result in run.engine.run(work, todo, lambda job: blame(out / QUARANTINE, job.name)):
            tally.add(result.shard.samples, result.bad, result.left_out)
            tally.judge(last=len(done) + 1 == len(jobs))
            done[result.shard.name] = result.shard
            index.shards = [done[name] for name in sorted(done)]
            if time.monotonic() - saved > SAVE_EVERY:
                index.save(out)
                saved = time.monotonic()
            watch.finished(job)
    if not sum(shard.samples for shard in done.values()):
        raise UserError(f"no sample is left of {len(jobs)} shards; see {out / QUARANTINE} for the reasons")
    index.shards = [done[name] for name in sorted(done)]
    index.save(out)
    typer.echo(f"{stage.name}: {index.samples} samples in {len(index.shards)} shards, {tally}: {out}")
    return index


def make_shard(stage: Stage, out: Path, seconds: float, alone: bool, job: Job) -> Done:
    """Write one shard and the list of what is not in it; runs in a worker."""
    guard = Guard(out / QUARANTINE, job.name, seconds, alone)
    part = None
    try:
        part = Part(out / f"{job.name}.tar", journal_of(out / QUARANTINE, job.name))
        guard.done = part.items
        for item in stage.samples(job, guard):
            part.add(item)
        listed = out / QUARANTINE / f"{job.name}.jsonl"
        if part.rejects:
            lines = [json.dumps({k: v for k, v in asdict(r).items() if v}, sort_keys=True) for r in part.rejects]
            write_atomic(listed, ("\n".join(lines) + "\n").encode())
        else:
            listed.unlink(missing_ok=True)
        shard = part.finish()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; make room or give another folder") from error
    finally:
        guard.close()
        if part is not None:
            part.close()
    clear_crumb(out / QUARANTINE, job.name)
    bad = sum(r.kind == BAD for r in part.rejects)
    return Done(shard, bad, len(part.rejects) - bad)


class Watch:
    """Shows how far the unfinished shards are, by their journals, wherever their workers run."""

    def __init__(self, out: Path, jobs: Sequence[Job], unit: Callable[[Job], int], advance: Callable[[int], None]):
        self.folder, self.unit, self.advance = out / QUARANTINE, unit, advance
        self._open = {job.name: job for job in jobs}
        self._shown: dict[str, int] = {}
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def finished(self, job: Job) -> None:
        """Count a job's remaining samples as done."""
        with self._lock:
            del self._open[job.name]
            self.advance(self.unit(job) - self._shown.pop(job.name, 0))

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            for journal in self.folder.glob(".*.items"):
                name, count = journal.stem[1:], items_in(journal)
                with self._lock:
                    job = self._open.get(name)
                    if job is not None and (new := min(count, self.unit(job) - 1) - self._shown.get(name, 0)) > 0:
                        self._shown[name] = self._shown.get(name, 0) + new
                        self.advance(new)


def each_sample(
    raws: Iterable[dict[str, Any] | Reject], guard: Guard, convert: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any] | Reject]:
    """Convert samples one by one under guard, behind those that are done; what cannot be becomes a `Reject`.

    "__source__" of a sample is where it came from.
    """
    for raw in islice(raws, guard.done, None):
        if isinstance(raw, Reject):
            yield raw
            continue
        key, source = raw["__key__"], raw.get("__source__", "")
        try:
            with guard.sample(key):
                converted: dict[str, Any] | Reject = convert(raw)
        except LeftOut as error:
            converted = Reject(key, str(error), LEFT_OUT, source)
        except UserError as error:
            converted = Reject(key, str(error), BAD, source)
        yield converted


def dataset_jobs(folder: Path) -> tuple[Index, list[Job]]:
    """The shards of a finished dataset as jobs.

    Raises:
        UserError: there is no such dataset, or a shard is missing or of another size.
    """
    folder = expand(folder)
    index = Index.load(folder)
    index.check(folder)
    shards = [s for s in index.shards if s.samples]
    if not shards:
        raise UserError(f"{folder} holds no samples; give a dataset that has some")
    return index, [Job(Path(s.name).stem, s.samples, Input(str(folder / s.name), s.sha256)) for s in shards]


def read_input(source: Input) -> Iterator[dict[str, Any]]:
    """The raw samples of a job's input shard, whose bytes are compared with the index first."""
    if sha256(Path(source.path)) != source.sha256:
        raise UserError(f"shard {source.path} is damaged: its SHA-256 differs from the index; make or copy it again")
    return read_raw(source.path)


def meta_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The json of a raw sample.

    Raises:
        UserError: it has none, or it is damaged.
    """
    place = f"{raw['__key__']} of {raw['__url__']}"
    if schema.META not in raw:
        raise UserError(f"sample {place} has no json; write the shard again")
    meta = decode_entry(schema.META, raw[schema.META], place)
    if not isinstance(meta, dict):
        raise UserError(f"the json of sample {place} is no object; write the shard again")
    return meta


def entries(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some entries of a raw sample, decoded, with its key."""
    return decode({k: v for k, v in raw.items() if k.startswith("__") or k in names})


def derive(stage: Stage, folder: Path, out: Path, run: Run) -> Index:
    """Make the dataset `out` of the dataset `folder`, shard by shard."""
    index, jobs = dataset_jobs(folder)
    if expand(folder).resolve() == expand(out).resolve():
        raise UserError(f"input and output are the same folder {out}; give another --out")
    return make_dataset(stage, out, jobs, run, origin(index), sum(s.bytes for s in index.shards))


def origin(index: Index) -> dict[str, Any]:
    """Provenance in a derived dataset's index: the dataset it was made of, and so on back to the first."""
    return {"name": index.name, "fingerprint": index.fingerprint(), "options": index.options}


def map_jobs(label: str, work, jobs: Sequence[Job], stands: Callable[[Job], bool], run: Run, blamed=None) -> None:
    """Run `work(job)`, which writes files of its own, for all jobs whose files do not stand yet."""
    run.validate()
    todo = [job for job in jobs if not stands(job)]
    if run.dry:
        typer.echo(f"{label}: {len(jobs)} shards, {len(jobs) - len(todo)} of them done, {len(todo)} to do")
        return
    total, remaining = sum(job.samples for job in jobs), sum(job.samples for job in todo)
    with sample_progress(label, total, total - remaining) as advance:
        for job, _ in run.engine.run(work, todo, blamed or (lambda job: False)):
            advance(job.samples)


def open_index(out: Path, options: dict[str, Any], planned: int, dry: bool = False) -> Index:
    """The index to go on with, or a new one.

    Raises:
        UserError: the folder holds other data.
    """
    options = json.loads(json.dumps(options))  # as it comes back from the file
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    if (out / indexing.FILE).exists():
        index = Index.load(out, require_complete=False)
        if index.options != options:
            old = index.options.items()
            changes = [f"{k} was {v!r}, is {options.get(k)!r}" for k, v in old if options.get(k) != v]
            reason = "; ".join(text if len(text) < 200 else text[:200] + "..." for text in changes)
            raise UserError(f"{out} holds other data ({reason or 'other options'}); give another folder")
    else:
        if out.exists() and any(out.glob("*.tar")):
            raise UserError(f"{out} holds shards but no index of this command; give an empty folder")
        index = Index("photos", 0, options)
    index.planned = planned
    if not dry:
        try:
            out.mkdir(parents=True, exist_ok=True)
            index.save(out)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}; give a folder you may write to") from error
    return index


def clear_work(folder: Path, pattern: str) -> None:
    """Remove what a finished stage kept beside the shards of `folder`; what others keep there stays."""
    work = folder / WORK
    clear_killed(work)
    for path in work.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with suppress(OSError):  # it is not there, or not empty
        work.rmdir()


def clear_killed(folder: Path, but: Container[str] = ()) -> None:
    """Remove the unfinished files of a run that was killed."""
    for left in folder.glob(".*.tmp"):
        if left.name not in but:
            left.unlink()


class _Tally:
    """Good, bad and left-out samples so far."""

    def __init__(self, max_bad: float, out: Path) -> None:
        self.max_bad, self.out = max_bad, out
        self.good = self.bad = self.left_out = 0

    def add(self, good: int, bad: int, left_out: int) -> None:
        self.good, self.bad, self.left_out = self.good + good, self.bad + bad, self.left_out + left_out

    def judge(self, last: bool) -> None:
        seen = self.good + self.bad + self.left_out
        if self.bad > self.max_bad * seen and (last or seen >= JUDGED_FROM):
            problem = f"{self.bad} of {seen} samples are bad, more than the share of {self.max_bad:g}"
            raise UserError(
                f"{problem}; see {self.out / QUARANTINE} for the reasons, then mend them or raise --max-bad"
            )

    def __str__(self) -> str:
        return f"{self.bad} bad and {self.left_out} left out in {QUARANTINE}"


def _counts(out: Path, job: str) -> tuple[int, int]:
    """Bad and left-out samples in a finished shard's list."""
    try:
        kinds = [
            json.loads(line)["kind"]
            for line in (out / QUARANTINE / f"{job}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    except FileNotFoundError:
        return 0, 0
    return kinds.count(BAD), kinds.count(LEFT_OUT)


def stands(path: Path, shard: Shard) -> bool:
    """Whether a shard is there with its right size; `verify` reads it."""
    return path.is_file() and path.stat().st_size == shard.bytes
