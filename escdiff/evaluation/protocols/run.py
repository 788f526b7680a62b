"""The run of a protocol: subject by subject, every picture kept as soon as it is painted, then one report.

Several processes may share one folder, each with its own share of the subjects.
"""

import hashlib
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchmetrics import Metric

from escdiff import __version__
from escdiff.evaluation.bench.models import fingerprint
from escdiff.evaluation.bench.records import RESULT, Record, load_task, save_task
from escdiff.evaluation.metrics.build import make_metrics
from escdiff.evaluation.metrics.similarity import check_texts
from escdiff.evaluation.protocols.cases import FIRST, PROMPTS, REAL, SECOND, SWAP, Case, cases
from escdiff.evaluation.protocols.judge import Shown, judge, judge_real, masker
from escdiff.evaluation.protocols.opinions import Opinions, forget
from escdiff.evaluation.protocols.painter import Painter
from escdiff.evaluation.protocols.report import write_protocol_report
from escdiff.evaluation.protocols.subjects import Subject
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write, writing
from escdiff.evaluation.vlm.panel import Panel
from escdiff.support.errors import UserError
from escdiff.support.files import replacing
from escdiff.support.progress import sample_progress

FORMAT = 1  # raise when the same settings would give other figures


@dataclass
class Run:
    """Where, what and how much.

    Attributes:
        metrics: see `make_metrics`. masks: see `judge.masker`.
        images: per prompt, of the seeds `seed`, `seed + 1`, ...
        reference: number of the picture that concepts are read from; the last one of subjects with fewer.
        tasks: of `cases.ABOUT`. shard: (i, n): this process takes every n-th subject, from the i-th.
        panel: a judge who is asked about the pictures once all of them are there; None for none.
    """

    name: str
    subjects: Sequence[Subject]
    painter: Painter
    out: Path
    metrics: Mapping[str, Mapping[str, Any]]
    masks: str = "none"
    images: int = 4
    seed: int = 0
    reference: int = 0
    tasks: tuple[str, ...] = (REAL, PROMPTS)
    shard: tuple[int, int] = (0, 1)
    device: str = "cpu"
    panel: Panel | None = None
    _shown: dict[str, Shown] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """One seed for each picture of a case."""
        return range(self.seed, self.seed + self.images)

    def cases(self, task: str, number: int) -> list[Case]:
        """The cases of a task with `number` subjects."""
        return cases(task, self.subjects, number, self.seeds)

    def of(self, task: str, number: int) -> list[Subject]:
        """The subjects that a task of the numbered one shows."""
        subject = self.subjects[number]
        other = self.subjects[(number + 1) % len(self.subjects)] if task == SWAP else subject.partner
        return [subject] if other is None else [subject, other]

    def painting(self, task: str, number: int) -> str:
        """Hash of all that a subject's pictures depend on."""
        painter, files = self.painter, [path for subject in self.of(task, number) for path in subject.pictures]
        weights = (painter.fingerprint, painter.steps, painter.guidance)
        parts = (FORMAT, __version__, weights, self.reference, fingerprint(*files), self.cases(task, number))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def judging(self, task: str, number: int) -> str:
        """Hash of all that its values depend on."""
        parts = (self.painting(task, number), sorted(map(str, self.metrics.items())), self.masks)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def run(self, command: str = "") -> dict[str, dict] | None:
        """Paint and judge this process's share; the report's figures once every share is there, else None.

        Raises:
            UserError: what the user can mend.
        """
        every = [case for task in self.tasks for i in range(len(self.subjects)) for case in self.cases(task, i)]
        metrics, find = make_metrics(self.metrics, self.device), masker(self.masks)
        if any(metric.against == "text" for metric in metrics.values()):
            check_texts(case.text for case in every)
        everyone = [s for subject in self.subjects for s in (subject, subject.partner) if s]
        self._shown = {s.name: Shown(s, min(self.reference, len(s.pictures) - 1), find) for s in everyone}
        share = range(self.shard[0], len(self.subjects), self.shard[1])
        total = sum(len(self.cases(task, i)) for i in share for task in self.tasks)
        with sample_progress(self.name, total) as advance:
            for number in share:
                for task in self.tasks:
                    if self._finished(task, number) is None:
                        self._do(task, number, metrics, advance)
                    else:
                        advance(len(self.cases(task, number)))
        finished = {(task, i): self._finished(task, i) for task in self.tasks for i in range(len(self.subjects))}
        if any(value is None for value in finished.values()):
            return None
        records = {task: [r for i in range(len(self.subjects)) for r in finished[task, i][1]] for task in self.tasks}
        metric_units = {name: metric.unit for name, metric in metrics.items()}
        opinions = Opinions(self.panel, self._shown, self.out) if self.panel else None
        if opinions:
            metric_units |= opinions.add(records)
            for (task, i), (seconds, task_records) in finished.items():
                if task_records:
                    save_task(self.out, self._file(task, i), self.judging(task, i), seconds, task_records)
        values = self.summary(records, metric_units) | self._of_sets(metrics, records.get(PROMPTS, []))
        if opinions:
            values |= opinions.overall(values)
        about = self.about(
            command, {task: sum(finished[task, i][0] for i in range(len(self.subjects))) for task in self.tasks}
        )
        write(self.out / "metrics.json", json.dumps(values, indent=1) + "\n")
        write(self.out / "run.json", json.dumps(about, indent=1) + "\n")
        write_protocol_report(self.out, self.name, records, values, about)
        return values

    def _finished(self, task: str, number: int) -> tuple[float, list[Record]] | None:
        if not self.cases(task, number):
            return 0.0, []
        stored = load_task(self.out, self._file(task, number), self.judging(task, number), Case)
        return stored and (stored[0], forget(stored[1]))

    def _file(self, task: str, number: int) -> str:
        return f"{task}/{self.subjects[number].name}"

    def _do(self, task: str, number: int, metrics: Mapping[str, Metric], advance) -> None:
        start, cases, subject = time.perf_counter(), self.cases(task, number), self.subjects[number]
        shown, notes = self._shown[subject.name], {}
        if task == REAL:
            paths = self._keep_real(shown)
            values, beside = judge_real(metrics, shown), [{} for _ in paths]
            advance(len(cases))
        else:
            paths, notes = self._paint(task, number, cases, advance)
            pictures = [_open(self.out / path) for path in paths]
            values = judge(metrics, cases, pictures, {s.name: self._shown[s.name] for s in self.of(task, number)})
            beside = [self._references(case) for case in cases]
        records = [
            Record(case, notes, value, {**references, RESULT: path})
            for case, value, path, references in zip(cases, values, paths, beside, strict=True)
        ]
        for read in self._shown.values():  # their pictures are read again if they are needed again
            read.__dict__.pop("real", None)
        save_task(self.out, self._file(task, number), self.judging(task, number), time.perf_counter() - start, records)

    def _paint(self, task: str, number: int, cases: Sequence[Case], advance) -> tuple[list[str], dict]:
        """Paint the missing pictures; returns the paths of all, and notes of the concept's cost."""
        folder = Path("pictures") / task / f"{self.subjects[number].name}-{self.painting(task, number)}"
        paths = [(folder / f"{i:04d}.png").as_posix() for i in range(len(cases))]
        missing = [i for i, path in enumerate(paths) if not (self.out / path).is_file()]
        advance(len(paths) - len(missing))
        concepts, seconds = {}, []
        for subject in self.of(task, number):
            concept, place, cost = self.painter.concept(subject, self._shown[subject.name].reference)
            concepts[subject.name] = (concept, place)
            seconds.append(cost)
        with writing(self.out / folder):
            (self.out / folder).mkdir(parents=True, exist_ok=True)

        def done(i: int, picture: Image.Image) -> None:
            _save(picture, self.out / paths[missing[i]])
            advance(1)

        self.painter.paint([cases[i] for i in missing], concepts, done)
        return paths, {"seconds_to_customize": round(sum(seconds), 4)} if all(map(math.isfinite, seconds)) else {}

    def _references(self, case: Case) -> dict[str, str]:
        """The references that a page shows beside a case."""
        if len(case.names) == 1:
            return {"reference": self._keep_real(self._shown[case.subject])[self._shown[case.subject].number]}
        shown = {"shape reference": case.shape, "appearance reference": case.appearance}
        shown = {FIRST: case.first, SECOND: case.second} if case.second else shown
        return {key: self._keep_real(self._shown[n])[self._shown[n].number] for key, n in shown.items()}

    def _keep_real(self, shown: Shown) -> list[str]:
        """Small copies of the real pictures, so that the folder is whole."""
        paths = [f"pictures/real/{shown.subject.name}/{i:02d}.png" for i in range(len(shown.subject.pictures))]
        for i, path in enumerate(paths):
            if not (self.out / path).is_file():
                with writing(self.out / path):
                    (self.out / path).parent.mkdir(parents=True, exist_ok=True)
                picture = shown.real[i].copy()
                picture.thumbnail((512, 512))
                _save(picture, self.out / path)
        return paths

    def summary(self, records: Mapping[str, Sequence[Record]], metric_units: Mapping[str, str]) -> dict[str, dict]:
        """`task/score` -> mean, low, high, n, unit: means by subject first, whose pictures are no independent samples.

        Args:
            metric_units: of the metrics; every other score is a share.
        """
        grouped: dict[str, dict[str, list[float]]] = {}
        for task, task_records in records.items():
            for record in task_records:
                for name, value in record.values.items():
                    grouped.setdefault(f"{task}/{name}", {}).setdefault(record.request.subject, []).append(value)
        figures = {}
        for key, by_subject in grouped.items():
            name = key.split("/")[1]
            unit = metric_units.get(units.base(name), units.SHARE)
            means = [float(np.mean(v)) for v in by_subject.values()]
            figures[key] = units.summarise(name, means, unit) | {"unit": unit}
        return figures

    def _of_sets(self, metrics: Mapping[str, Metric], records: Sequence[Record]) -> dict[str, dict]:
        """Metrics of sets, such as KID: all pictures that show a whole subject, against all real ones."""
        scores = {}
        paths = [self.out / record.pictures[RESULT] for record in records if record.request.whole]
        for name, metric in metrics.items():
            if metric.against == "set" and paths:
                metric.reset()
                for first in range(0, len(paths), 64):
                    metric.update([_open(path) for path in paths[first : first + 64]], [])
                for shown in self._shown.values():
                    metric.update([], shown.real)
                    shown.__dict__.pop("real", None)
                value = float(metric.compute())
                if math.isfinite(value):
                    whole = {"mean": value, "low": value, "high": value, "n": len(paths), "unit": metric.unit}
                    scores[f"{PROMPTS}/{name}"] = whole
        return scores

    def about(self, command: str, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Everything that the run was, for run.json and the page."""
        painter = self.painter
        return {
            "command": command, "protocol": self.name, "escdiff": __version__, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "torchmetrics")},
            "backbone": painter.backbone.name, "text_hash": painter.backbone.text_hash, "weights": painter.fingerprint,
            "concepts": str(painter.concepts or "read by the encoder"),
            "scheduler": type(painter.backbone.scheduler).__name__, "steps": painter.steps,
            "guidance": painter.guidance, "seeds": list(self.seeds), "reference": self.reference,
            "subjects": {s.name: [s.category, len(s.pictures), len(s.templates)] for s in self.subjects},
            "prompts": sorted({t for s in self.subjects for t in s.templates}),
            "metrics": {name: dict(line) for name, line in self.metrics.items()}, "masks": self.masks,
            **({"judge": self.panel.about()} if self.panel else {}),
            "seconds": {task: round(value, 1) for task, value in seconds.items()},
        }  # fmt: skip


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (1, 8): the second of eight.

    Raises:
        UserError: it is none.
    """
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UserError(f"--shard is {text!r}; give such as 1/8, the first of eight processes")
    return int(first) - 1, int(count)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _save(picture: Image.Image, path: Path) -> None:
    """Save whole or not at all: a picture that exists is complete."""
    with writing(path), replacing(path) as file:
        picture.save(file, "PNG", compress_level=1)
