"""Several things, relations and actions with every method: `python -m escdiff.evaluation scenes`.

Cells (a concept, a method's pictures of one task) are kept when they are finished, so a stopped run goes on.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from escdiff import __version__
from escdiff.backbone.adapters.attached import applied
from escdiff.concept import Concept
from escdiff.concept.naming import renamed
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.bench.records import RESULT, Record, load_task, save_pictures, save_task
from escdiff.evaluation.bench.scenes.paint import judge_scenes, make_scenes
from escdiff.evaluation.bench.scenes.requests import SceneRequest
from escdiff.evaluation.comparison.contenders import Contender
from escdiff.evaluation.comparison.customize import EXPORT, customize, learn
from escdiff.evaluation.comparison.scenes.cases import Case, draw_cases
from escdiff.evaluation.comparison.scenes.contenders import ESCDIFF
from escdiff.evaluation.comparison.scenes.report import write_report
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write
from escdiff.methods.base import CONCEPT
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.pipelines.generate import generate
from escdiff.support.progress import sample_progress

FORMAT = 2  # raise when the same settings would give other figures
Pictures = list[tuple[Record, dict]]


@dataclass
class SceneComparison:
    """Where, who and how much.

    Attributes:
        tasks: task -> its contenders by name.
        cases: per task. each: pictures per case.
        scale: of all steps of optimisation and learning.
        data, samples: Still Life folder that encoders learn from, and how many pictures to render if it lacks them.
    """

    models: Models
    out: Path
    tasks: Mapping[str, Mapping[str, Contender]]
    cases: int = 20
    each: int = 3
    seed: int = 0
    quick: bool = False
    scale: float = 1.0
    data: str = "outputs/still_life"
    samples: int = 8_000

    def run(self, command: str = "") -> dict[str, dict[str, dict[str, Any]]]:
        """Customize and paint all, then write the table; gives task -> contender -> what the table says."""
        table, outcomes = {}, {}
        for task, contenders in self.tasks.items():
            cases = draw_cases(task, self.seed, self.cases, self.each)
            for number, case in enumerate(cases):
                case.save(self.folder(task, number))
            outcomes[task] = {name: self.contend(task, name, cases) for name in contenders}
            table[task] = {name: self.row(task, name, *outcome) for name, outcome in outcomes[task].items()}
        about = {
            "command": command, "date": time.strftime("%Y-%m-%d"), "backbone": self.models.backbone.name,
            "weights": self.models.fingerprints, "cases": self.cases, "pictures": self.each, "seed": self.seed,
            "sampling_steps": self.models.steps, "guidance": self.models.guidance, "scale": self.scale,
            "quick": self.quick, "judged": self.models.scene_oracle is not None,
        }  # fmt: skip
        write(self.out / "scenes.json", json.dumps({"run": about, "tasks": table}, indent=1) + "\n")
        records = {
            task: {name: task_records for name, (_, task_records) in by_name.items()}
            for task, by_name in outcomes.items()
        }
        write_report(self.out, table, records, about, self.each)
        return table

    def folder(self, task: str, number: int) -> Path:
        """Where a case's references lie."""
        return self.out / "references" / task / f"{number:02d}"

    def made(self, task: str, name: str) -> Path:
        """Where all that a contender learns is kept."""
        return self.out / "methods" / f"{task}-{name}"

    def contend(self, task: str, name: str, cases: Sequence[Case]) -> tuple[list[dict[str, Any]], list[Record]]:
        """What a contender's concepts cost, and its judged pictures, case by case."""
        costs, encoder = [], self.encoder(task, name)
        if self.tasks[task][name].method:
            costs = [self.customize(task, name, i, case, encoder) for i, case in enumerate(cases)]
        digest = self.settings(task, name, self.cases, self.models.steps, self.models.guidance)
        home = self.out / "cells" / name
        if (stored := load_task(home, task, digest, SceneRequest)) is not None:
            return costs, stored[1]
        start = time.perf_counter()
        painted: Pictures = []
        with sample_progress(f"{task}: painting with {name}", len(cases) * self.each) as advance:
            for number, case in enumerate(cases):
                seeds = [1000 * number + i for i in range(self.each)]
                if name == ESCDIFF:
                    painted += make_scenes(self.models, [ask.request for ask in case.asks], seeds, advance)
                else:
                    painted += self.paint(task, name, number, case, seeds)
                    advance(self.each)
        records = [record for record, _ in painted]
        save_pictures(home, task, records, [{RESULT: pictures[RESULT]} for _, pictures in painted])
        save_task(home, task, digest, time.perf_counter() - start, records)
        return costs, records

    @property
    def common(self) -> dict[str, Any]:
        """What every training is given."""
        return {"backbone": self.models.backbone.name, "seed": self.seed}

    def encoder(self, task: str, name: str) -> Path | None:
        """What a contender learns once, if it has an encoder; the training shows its own progress."""
        contender = self.tasks[task][name]
        if not (steps := contender.scaled(self.quick, self.scale)[1]):
            return None
        folder = self.made(task, name) / f"learned-{self.settings(task, name, 'learn')}"
        return learn(contender, folder, self.common, steps, self.data, self.samples)

    def customize(self, task: str, name: str, number: int, case: Case, encoder: Path | None) -> dict[str, Any]:
        """Make a case's concepts; gives what they cost together."""
        contender, shown = self.tasks[task][name], self.folder(task, number)
        steps, digest = contender.scaled(self.quick, self.scale)[0], self.settings(task, name, number)
        inits = list(case.words) if case.names else [list(case.words)]
        pictures = [shown / f"{i}.png" for i in range(len(case.names))] or [shown]
        costs = []
        for place, picture, init in zip(self.places(task, name, number, case), pictures, inits, strict=True):
            own = replace(contender, settings={**contender.settings, "init": init}) if init else contender
            costs.append(customize(own, picture, place, digest, self.common, steps, encoder, None))
        return costs[0] | {"seconds": sum(cost["seconds"] for cost in costs)}

    def paint(self, task: str, name: str, number: int, case: Case, seeds: Sequence[int]) -> Pictures:
        """A case's judged pictures, by its concept or by words alone."""
        models, requests = self.models, [ask.request for ask in case.asks]
        prompts, concepts, folders, joined = [scene_caption(r.expected) for r in requests], [], [], []
        if self.tasks[task][name].method:
            prompts = [ask.prompt for ask in case.asks]
            folders = [place / EXPORT for place in self.places(task, name, number, case)]
            concepts = [Concept.load(folder / CONCEPT) for folder in folders]
            named = {own: renamed(concept, own) for own, concept in zip(case.names, concepts, strict=False)}
            joined = [Concept.combine(**named) if named else concepts[0]] * len(prompts)
        models.use_branches(any(concept.branches for concept in concepts))
        with applied(models.backbone, concepts, folders):
            results = generate(
                models.backbone, prompts, joined or None, steps=models.steps, guidance=models.guidance, seeds=seeds
            )
        readings, values = judge_scenes(models, requests, results, draw([r.expected for r in requests]))
        records = [Record(*parts) for parts in zip(requests, readings, values, strict=True)]
        return [(record, {RESULT: picture}) for record, picture in zip(records, results, strict=True)]

    def places(self, task: str, name: str, number: int, case: Case) -> list[Path]:
        """Where a case's concepts are made: other settings are other folders, so that no run resumes another."""
        home = self.made(task, name) / f"{number:02d}-{self.settings(task, name, number)}"
        return [home / own for own in case.names] or [home]

    def settings(self, task: str, name: str, *parts: Any) -> str:
        """Hash of all that a cell depends on."""
        contender = self.tasks[task][name]
        about = sorted((asdict(contender) | {"about": ""}).items(), key=str)
        steps = contender.scaled(self.quick, self.scale)
        shared = (FORMAT, __version__, self.seed, self.each, self.models.fingerprints, steps, about)
        if steps[1]:
            shared += (self.samples,)
        return hashlib.sha256(repr((shared, task, parts)).encode()).hexdigest()[:16]

    def row(self, task: str, name: str, costs: Sequence[dict], records: Sequence[Record]) -> dict[str, Any]:
        """Costs, means over cases, and score -> mean, low, high, n; a case's pictures are no independent samples.

        No seconds where nothing is learned per case.
        """
        contender, grouped = self.tasks[task][name], {}
        steps, learning = contender.scaled(self.quick, self.scale)
        for number, record in enumerate(records):
            for score, value in record.values.items():
                grouped.setdefault(score, {}).setdefault(number // self.each, []).append(value)
        means = {score: [sum(v) / len(v) for v in cases.values()] for score, cases in grouped.items()}
        return {
            "about": contender.about,
            "steps": steps,
            "learning_steps": learning,
            "seconds": sum(cost["seconds"] for cost in costs) / len(costs) if costs else None,
            "scores": {score: units.summarise(score, values) for score, values in means.items()},
        }
