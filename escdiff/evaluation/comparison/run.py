"""All methods on the same references, prompts, seeds and scores: `python -m escdiff.evaluation compare`.

Cells (a concept, a method's pictures of one task) are kept when they are finished, so a stopped run goes on.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from escdiff import __version__
from escdiff.backbone.adapters.attached import applied
from escdiff.concept import Concept
from escdiff.data.shard_store import ShardStore
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.derived import edit, leak
from escdiff.evaluation.bench.identity import identify
from escdiff.evaluation.bench.instances import stream
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.bench.records import RESULT, Record, load_task, save_pictures, save_task
from escdiff.evaluation.bench.requests import in_words
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.evaluation.comparison import cases as comparison_cases
from escdiff.evaluation.comparison.contenders import Contender
from escdiff.evaluation.comparison.customize import EXPORT, customize, learn
from escdiff.evaluation.comparison.report import write_comparison
from escdiff.evaluation.comparison.sheet import draw_sheet
from escdiff.evaluation.report import units
from escdiff.evaluation.report.writing import write
from escdiff.methods.base import CONCEPT
from escdiff.pipelines.generate import generate
from escdiff.support.config.data import DataConfig
from escdiff.support.progress import sample_progress
from escdiff.training.encoder.datasets import prepare

FORMAT = 2  # raise when the same settings would give other figures
SWAP_STRENGTH = 0.5  # of each of two adapters at once
NO_COST = dict.fromkeys(("seconds", "bytes", "shared", "parameters", "steps"), 0)  # of words


@dataclass
class Comparison:
    """Where, who and how much.

    Attributes:
        references: number of references. per_reference: pictures painted of each, per task.
        scale: of all steps of optimisation and learning.
        split: how methods without shape and appearance of their own are split: "hand" or "gates", ESCDiff's.
        data, samples: Still Life folder that encoders learn from, and how many pictures to render if it is missing.
        costs: contender -> what each of its concepts cost. seconds: contender -> seconds per picture.
    """

    models: Models
    out: Path
    contenders: dict[str, Contender]
    references: int = 20
    per_reference: int = 2
    seed: int = 0
    quick: bool = False
    scale: float = 1.0
    split: str = "hand"
    data: str = "outputs/still_life"
    samples: int = 20_000
    encoder: str | None = None
    costs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    records: dict[str, dict[str, list[Record]]] = field(default_factory=dict)

    @cached_property
    def factors(self):
        """The factors of the references, equal for equal seeds."""
        return comparison_cases.draw_references(self.seed, self.references)

    @cached_property
    def world(self) -> tuple[str, int, str]:
        """What encoders learn from, rendered if it is missing: folder, pictures to render, hash of the shards."""
        prepare(DataConfig(root=self.data, num_samples=self.samples, size=None))
        return self.data, self.samples, ShardStore(self.data).index().fingerprint()

    @property
    def cells(self) -> Path:
        """Folder of the pictures."""
        return self.out / ("cells" if self.split == "hand" else f"cells-{self.split}")

    def settings(self, name: str, *parts: Any) -> str:
        """Hash of all that a cell of a contender depends on."""
        models, contender = self.models, self.contenders[name]
        about = sorted((asdict(contender) | {"about": ""}).items(), key=str)
        encoded = contender.method in ("", "escdiff_tuned") and not contender.words
        weights = models.fingerprints[: 2 if encoded else 1]  # with our encoder, or without
        shared = (FORMAT, __version__, self.seed, weights, self.steps(name), about)
        if any(contender.learn):
            shared += self.world
        return hashlib.sha256(repr((shared, parts)).encode()).hexdigest()[:16]

    def steps(self, name: str) -> tuple[int, int]:
        """(steps per reference, steps of learning) of a contender, scaled."""
        return self.contenders[name].scaled(self.quick, self.scale)

    def run(self, command: str = "") -> dict[str, Any]:
        """Make all concepts, then all pictures, then the table, and return it."""
        for i, picture in enumerate(draw(self.factors)):
            path = self.out / "references" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                picture.save(path)
        pictures = self.references * self.per_reference * len(comparison_cases.TASKS)
        for name in self.contenders:
            self.costs[name] = self.customize(name)
            with sample_progress(f"painting with {name}", pictures) as advance:
                self.records[name] = {task: self.paint(name, task, advance) for task in comparison_cases.TASKS}
        table = self.table()
        about = self.about(command)
        write(self.out / "comparison.json", json.dumps({"run": about, "methods": table}, indent=1) + "\n")
        cases = {
            task: comparison_cases.draw_cases(task, self.factors, self.per_reference, self.seed)
            for task in comparison_cases.TASKS
        }
        draw_sheet(
            self.out / "comparison.png", self.out / "references", self.cells, cases, self.records, self.per_reference
        )
        write_comparison(self.out, table, about)
        return table

    def customize(self, name: str) -> list[dict[str, Any]]:
        """The concepts of all references; the training shows its own progress."""
        contender, (steps, learning) = self.contenders[name], self.steps(name)
        if contender.words:
            return [NO_COST] * self.references
        common = {"backbone": self.models.backbone.name, "seed": self.seed, "encoder": self.encoder}
        folder, learned, costs = self.out / "methods" / name, None, []
        if learning:
            learned = learn(
                contender, folder / f"learned-{self.settings(name, 'learn')}", common, learning, self.data, self.samples
            )
        if not contender.method:  # the first pass of a network is slower than all others
            self.models.encoder.encode(draw(self.factors[:1])[0])
        for i in range(self.references):
            digest = self.settings(name, "concept", i)
            # Another setting is another folder, so that no run resumes a different one.
            place, picture = folder / f"{i:02d}-{digest}", self.out / "references" / f"{i:02d}.png"
            costs.append(customize(contender, picture, place, digest, common, steps, learned, self.models.encoder))
        return costs

    def place(self, name: str, i: int) -> Path:
        """Folder of a method's concept of reference i."""
        return self.out / "methods" / name / f"{i:02d}-{self.settings(name, 'concept', i)}" / EXPORT

    def paint(self, name: str, task: str, advance) -> list[Record]:
        """The judged pictures of a task, reference by reference."""
        cases = comparison_cases.draw_cases(task, self.factors, self.per_reference, self.seed)
        gates = self.models.fingerprints[1:2] if self.split == "gates" else ()
        sampling = (self.models.steps, self.models.guidance, *gates)
        digest = self.settings(name, task, self.references, self.per_reference, *sampling)
        home = self.cells / name
        stored = load_task(home, task, digest)
        if stored is None:
            start = time.perf_counter()
            pictures = self._pictures(name, task, cases, advance)
            seconds = time.perf_counter() - start
            requests, readings = [case.request for case in cases], self.models.read(pictures)
            which = identify(self.models.gallery, TASKS[task].identities, requests, pictures)
            records = [
                Record(request, read, scores.judge(TASKS[task].scores, read, request.expected) | same)
                for request, read, same in zip(requests, readings, which, strict=True)
            ]
            save_pictures(home, task, records, [{RESULT: picture} for picture in pictures])
            save_task(home, task, digest, seconds, records)
            stored = (seconds, records)
        else:
            advance(len(cases))
        if task == "both":
            self.seconds[name] = stored[0] / len(cases)
        return stored[1]

    def _pictures(self, name: str, task: str, cases: Sequence[comparison_cases.Case], advance) -> list:
        """Painted together where the U-Net is the same, concept by concept where it is not."""
        noise = stream(self.seed, comparison_cases.STREAM - 1 - comparison_cases.TASKS.index(task))
        seeds = noise.integers(1 << 31, size=len(cases)).tolist()
        if length := self.contenders[name].words:
            captions = in_words([case.request for case in cases], length)
            return self.models.paint(captions, [{}] * len(cases), seeds, advance)
        concepts = {i: Concept.load(self.place(name, i) / CONCEPT) for case in cases for i in case.references}
        gates = {a: g.detach().cpu() for a, g in self.models.encoder.gates().items()} if self.split == "gates" else None
        alone = any("adapter" in concept.notes for concept in concepts.values())
        size = self.per_reference if alone else max(self.models.batch_size, 1)
        self.models.use_branches(any(concept.branches for concept in concepts.values()))
        pictures = []
        for first in range(0, len(cases), size):
            part = cases[first : first + size]
            used = list(dict.fromkeys(i for case in part for i in case.references)) if alone else []
            pairs = [
                comparison_cases.in_their_words(
                    task, case.request.prompt, [concepts[i] for i in case.references], gates
                )
                for case in part
            ]
            strength = SWAP_STRENGTH if len(used) > 1 else 1.0
            with applied(
                self.models.backbone, [concepts[i] for i in used], [self.place(name, i) for i in used], strength
            ):
                pictures += generate(
                    self.models.backbone, [prompt for prompt, _ in pairs], [concept for _, concept in pairs],
                    steps=self.models.steps, guidance=self.models.guidance, seeds=seeds[first : first + size],
                )  # fmt: skip
            advance(len(part))
        return pictures

    def table(self) -> dict[str, dict[str, Any]]:
        """Contender -> its costs (means over references) and "task/score" -> mean, low, high, n (references)."""
        rows = {}
        for name, contender in self.contenders.items():
            costs, done = self.costs[name], dict(self.records[name])
            mean = lambda key, costs=costs: sum(cost[key] for cost in costs) / len(costs)  # noqa: E731
            done |= {"leak": leak(done), "edit": edit(done)}
            rows[name] = {
                "about": contender.about, "steps": self.steps(name)[0], "learning_steps": self.steps(name)[1],
                "seconds": mean("seconds"), "seconds_per_picture": self.seconds[name], "bytes": mean("bytes"),
                "shared_bytes": mean("shared"), "parameters": mean("parameters"),
                **{key: mean(key) for key in ("density", "density_of_word") if all(key in cost for cost in costs)},
                "scores": {f"{t}/{s}": v for t, records in done.items() for s, v in self._scores(records).items()},
            }  # fmt: skip
        return rows

    def _scores(self, records: Sequence[Record]) -> dict[str, dict]:
        """Pictures of one reference are no independent samples: means by reference first, then over references."""
        grouped: dict[str, dict[Any, list[float]]] = {}
        for record in records:
            source = record.request.shape or record.request.appearance
            for name, value in record.values.items():
                grouped.setdefault(name, {}).setdefault(source, []).append(value)
        return {
            name: units.summarise(name, [sum(v) / len(v) for v in by_reference.values()])
            for name, by_reference in grouped.items()
        }

    def about(self, command: str) -> dict[str, Any]:
        """Everything that the results depend on, for run.json."""
        models = self.models
        return {
            "command": command, "date": time.strftime("%Y-%m-%d"), "escdiff": __version__,
            "backbone": models.backbone.name, "weights": models.fingerprints, "references": self.references,
            "pictures": self.per_reference, "seed": self.seed, "sampling_steps": models.steps,
            "guidance": models.guidance, "scale": self.scale, "quick": self.quick, "split": self.split,
        }  # fmt: skip
