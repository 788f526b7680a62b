"""The edit bench: every editor on the same cases, each kept when it is finished, then one table and a sheet."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from escdiff import __version__
from escdiff.evaluation.bench.models import fingerprint
from escdiff.evaluation.bench.records import RESULT, Record, load_task, save_pictures, save_task
from escdiff.evaluation.editing.cases import Case, make_cases
from escdiff.evaluation.editing.report import draw_sheet, report, unit_of
from escdiff.evaluation.editing.task import Task
from escdiff.evaluation.editing.tools import Tools
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write
from escdiff.mini.world.edits import Edit
from escdiff.support.progress import sample_progress

FORMAT = 2  # raise when the same settings would give other figures
Table = dict[str, dict[str, dict[str, float]]]


@dataclass(eq=False)
class EditBench:
    """Where, who and how much.

    Attributes:
        names: of the task's editors. count: cases.
    """

    task: Task
    tools: Tools
    out: Path
    names: Sequence[str]
    count: int = 60
    seed: int = 0

    def settings(self, name: str) -> str:
        """Hash of all that an editor's records depend on."""
        models, model = self.tools.models, self.tools.trained.get(name)
        trained = fingerprint(model) if model else ""
        weights = models.fingerprints[: 2 if name == "attribute_transfer" else 1]
        task = (FORMAT, __version__, self.task.name, name, self.seed, self.count)
        parts = (*task, weights, trained, models.steps, models.guidance)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def run(self, command: str = "") -> Table:
        """Edit, judge and write {task}.md, {task}.png and {task}.json; editors that are done are read back.

        Raises:
            UserError: the output folder cannot be written.
        """
        cases, records, seconds = make_cases(self.task.draw(self.seed, self.count), self.seed), {}, {}
        with sample_progress(self.task.name, len(self.names) * self.count) as advance:
            for name in self.names:
                stored = load_task(self.out, name, self.settings(name), Edit)
                seconds[name], records[name] = stored or self._edit(name, cases, advance)
                advance(self.count if stored else 0)
        table = {name: summarise(editor_records) for name, editor_records in records.items()}
        about = self.about(command) | {"seconds": {name: round(value, 1) for name, value in seconds.items()}}
        file = self.out / f"{self.task.name}.json"
        write(file, json.dumps({"about": about, "table": table}, indent=1) + "\n")
        write(file.with_suffix(".md"), report(self.task, table, about))
        draw_sheet(file.with_suffix(".png"), self.out, cases, records, self.task.reference)
        return table

    def _edit(self, name: str, cases: Sequence[Case], advance) -> tuple[float, list[Record]]:
        start, saved, results = time.perf_counter(), self.tools.saved, []
        for case in cases:
            if (picture := self.task.editors[name](self.tools, case)) is not None:
                results.append((case, picture))
            advance(1)
        # An inversion that another editor made counts for this one too.
        seconds = (time.perf_counter() - start + self.tools.saved - saved) / max(len(results), 1)
        records = self.task.judge(self.tools, [case for case, _ in results], [picture for _, picture in results])
        save_pictures(self.out, name, records, [{RESULT: picture} for _, picture in results])
        save_task(self.out, name, self.settings(name), seconds, records)
        return seconds, records

    def about(self, command: str) -> dict[str, Any]:
        """Everything that the results depend on."""
        models, trained = self.tools.models, {name: str(folder) for name, folder in self.tools.trained.items()}
        return {
            "command": command, "date": time.strftime("%Y-%m-%d"), "escdiff": __version__, "cases": self.count,
            "backbone": models.backbone.name, "weights": models.fingerprints, "trained": trained, "seed": self.seed,
            "steps": models.steps, "guidance": models.guidance,
        }  # fmt: skip


def summarise(records: Sequence[Record]) -> dict[str, Mapping[str, float]]:
    """Score -> mean, low, high, n."""
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.values.items():
            values.setdefault(name, []).append(value)
    return {name: units.summarise(name, column, unit_of(name)) for name, column in values.items()}
