"""The run of a bench: task by task, each kept when it is finished, then the tables and pages."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from escdiff import __version__
from escdiff.evaluation.bench.agreement import agreements
from escdiff.evaluation.bench.derived import DERIVED
from escdiff.evaluation.bench.headline import to_json
from escdiff.evaluation.bench.instances import stream
from escdiff.evaluation.bench.models import Advance, Models
from escdiff.evaluation.bench.paint import make
from escdiff.evaluation.bench.records import Record, load_task, save_pictures, save_task
from escdiff.evaluation.bench.report import write_report
from escdiff.evaluation.bench.scenes.paint import make_scenes
from escdiff.evaluation.bench.tasks import DERIVE, SCENES, TASKS, in_order
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write
from escdiff.support.progress import sample_progress

NOISE = 100  # the streams of the pictures' noise start here
FORMAT = 3  # raise when the same settings would give other figures
Metrics = dict[str, dict[str, float | int]]
log = logging.getLogger(__name__)


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
        """How many pictures a task has."""
        return self.numbers.get(task, TASKS[task].number[0 if self.quick else 1])

    def settings(self, name: str) -> str:
        """Hash of all that a task's records depend on."""
        task, models = TASKS[name], self.models
        used = [(need, self.number(need)) for need in (name, *task.needs)]
        used_weights = (True, task.needs_encoder, task.make == SCENES)
        weights = [each for each, needed in zip(models.fingerprints, used_weights, strict=False) if needed]
        parts = (FORMAT, __version__, used, self.seed, weights, models.steps, models.guidance)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def run(self, names: Sequence[str], command: str = "") -> Metrics:
        """Run the named tasks and those they need, and write everything.

        What the output folder holds of any task with the same settings is taken from there. Tasks whose judge is
        missing are left out, with a warning.

        Raises:
            UserError: the output folder cannot be written.
        """
        order = self._able(in_order(list(names)))
        with sample_progress("esc-bench", sum(map(self.number, order))) as advance:
            for task in TASKS:
                if finished := load_task(self.out, task, self.settings(task), TASKS[task].request):
                    self.seconds[task], self.records[task] = finished
                    advance(self.number(task) if task in order else 0)
                elif task in order:
                    self._run(task, advance)
        metrics, about = self.metrics(), self.about(command)
        write(self.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        write(self.out / "run.json", json.dumps(about, indent=1) + "\n")
        write(self.out / "headline.json", json.dumps(to_json(self.records), indent=1) + "\n")
        write_report(self.out, self.records, metrics, about)
        return metrics

    def _able(self, order: list[str]) -> list[str]:
        """The tasks that can be judged."""
        if not self.models.oracle.config.embeddings:
            log.warning("this oracle tells no instances apart: shape_id and material_id are left out")
        if self.models.scene_oracle is not None:
            return order
        if left := [task for task in order if TASKS[task].judged]:
            log.warning(
                "%s left out: there is no scene oracle; train it with `python train.py experiment=mini/scene_oracle` "
                "or name its folder",
                ", ".join(left),
            )
        return [task for task in order if task not in left]

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
        arguments = (requests, seeds.tolist(), advance)
        results = make_scenes(self.models, *arguments) if task.make == SCENES else make(self.models, task, *arguments)
        save_pictures(self.out, name, [record for record, _ in results], [pictures for _, pictures in results])
        return [record for record, _ in results]

    def metrics(self) -> Metrics:
        """`task/score` -> mean, low, high, n."""
        values: dict[str, list[float]] = {}
        for task, records in self.records.items():
            for record in records:
                for name, value in record.values.items():
                    values.setdefault(f"{task}/{name}", []).append(value)
        figures = {key: units.summarise(key.split("/")[1], column) for key, column in values.items()}
        for task in (name for name in self.records if TASKS[name].agreements):
            read = agreements([(record.request.expected, record.reading) for record in self.records[task]])
            figures |= {f"{task}/{score}": value for score, value in read.items()}
        return figures

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
