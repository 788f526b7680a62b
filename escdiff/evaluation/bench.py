"""The run of a bench: task by task, each kept when it is finished, then the tables and pages."""

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from escdiff import __version__
from escdiff.data.progress import sample_progress
from escdiff.evaluation import scores
from escdiff.evaluation.derived import DERIVED
from escdiff.evaluation.make import make
from escdiff.evaluation.models import Advance, Models
from escdiff.evaluation.records import Record, load_task, save_pictures, save_task, write
from escdiff.evaluation.references import stream
from escdiff.evaluation.report import write_report
from escdiff.evaluation.tasks import DERIVE, TASKS, in_order

NOISE = 100  # the streams of the pictures' noise start here
FORMAT = 1  # raise when the same settings would give other figures
Metrics = dict[str, dict[str, float | int]]


@dataclass
class Bench:
    """Where, how much and from which seed.

    Attributes:
        numbers: task -> pictures, instead of the task's own number.
        records: of the finished tasks.
    """

    models: Models
    out: Path
    quick: bool = False
    seed: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def number(self, task: str) -> int:
        return self.numbers.get(task, TASKS[task].number[0 if self.quick else 1])

    def settings(self, name: str) -> str:
        """Hash of all that a task's records depend on."""
        task, models = TASKS[name], self.models
        used = [(each, self.number(each)) for each in (name, *task.needs)]
        weights = models.fingerprints[: 2 if task.needs_encoder else 1]
        parts = (FORMAT, __version__, used, self.seed, weights, models.steps, models.guidance)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def run(self, names: Sequence[str], command: str = "") -> Metrics:
        """Run the named tasks and those they need, and write everything.

        What the output folder holds of any task with the same settings is taken from there.

        Raises:
            UserError: the output folder cannot be written.
        """
        order = in_order(list(names))
        with sample_progress("esc-bench", sum(map(self.number, order))) as advance:
            for task in TASKS:
                if kept := load_task(self.out, task, self.settings(task)):
                    self.seconds[task], self.records[task] = kept
                    advance(self.number(task) if task in order else 0)
                elif task in order:
                    self._run(task, advance)
        metrics, about = self.metrics(), self.about(command)
        write(self.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write(self.out / "run.json", json.dumps(about, indent=1) + "\n")
        write_report(self.out, self.records, metrics, about)
        return metrics

    def _run(self, task: str, advance: Advance) -> None:
        start = time.perf_counter()
        records = self._make(task, advance) if TASKS[task].make != DERIVE else []
        if task in DERIVED:
            records += DERIVED[task](self.records, self.out, self.seed)
        self.records[task], self.seconds[task] = records, time.perf_counter() - start
        save_task(self.out, task, self.settings(task), self.seconds[task], records)

    def _make(self, name: str, advance: Advance) -> list[Record]:
        task = TASKS[name]
        requests = task.draw(self.seed, self.number(name))
        seeds = stream(self.seed, NOISE + list(TASKS).index(name)).integers(1 << 31, size=len(requests))
        made = make(self.models, task, requests, seeds.tolist(), advance)
        save_pictures(self.out, name, [record for record, _ in made], [pictures for _, pictures in made])
        return [record for record, _ in made]

    def metrics(self) -> Metrics:
        """`task/score` -> mean, low, high, n."""
        values: dict[str, list[float]] = {}
        for task, records in self.records.items():
            for record in records:
                for name, value in record.values.items():
                    values.setdefault(f"{task}/{name}", []).append(value)
        return {key: scores.summarise(key.split("/")[1], found) for key, found in values.items()}

    def about(self, command: str) -> dict:
        """Command, versions, settings and seconds per task, for run.json."""
        packages = ("torch", "diffusers", "transformers", "numpy")
        return {
            "command": command, "escdiff": __version__, "python": platform.python_version(),
            **{name: version(name) for name in packages}, "backbone": self.models.backbone.name,
            "text_hash": self.models.backbone.text_hash, "weights": self.models.fingerprints,
            "steps": self.models.steps, "guidance": self.models.guidance, "seed": self.seed,
            "pictures": {task: len(records) for task, records in self.records.items()},
            "seconds": {task: round(seconds, 1) for task, seconds in self.seconds.items()},
        }  # fmt: skip
