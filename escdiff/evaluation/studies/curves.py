"""Training curves of several runs in one figure and one table, from what each wrote in its metrics.jsonl."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from escdiff.support.config.compose import read
from escdiff.support.errors import UserError

# What tells most of each recipe; several are drawn together where they share a scale.
SHOWN = {
    "clip": ("top1",), "vae": ("psnr",), "unet": ("loss_mean",), "oracle": ("family", "pattern", "color"),
    "encoder": ("words", "denoising"), "method": ("loss_mean",),
}  # fmt: skip
WINDOW = 15  # logged points in a running mean
COLUMNS = 3

Curve = tuple[np.ndarray, np.ndarray]


def read_curves(runs: Sequence[Path]) -> dict[str, dict[str, Curve]]:
    """Recipe -> metric -> (samples seen, values); runs of one recipe are put one behind the other.

    Args:
        runs: folders, and tables that `draw_curves` wrote of runs whose folders are gone.

    Raises:
        UserError: a folder without a configuration or metrics, a file that is no such table, or nothing that any of
            the runs has logged.
    """
    curves: dict[str, dict[str, Curve]] = {}
    seen: dict[str, float] = {}
    for run in runs:
        for recipe, (metrics, count) in (_of_table(run) if run.suffix == ".csv" else _of_run(run)).items():
            for name, (samples, values) in metrics.items():
                before = curves.setdefault(recipe, {}).get(name, (np.empty(0), np.empty(0)))
                samples = samples + seen.get(recipe, 0.0)
                curves[recipe][name] = np.concatenate([before[0], samples]), np.concatenate([before[1], values])
            seen[recipe] = seen.get(recipe, 0.0) + count
    if not curves:
        raise UserError(f"{', '.join(map(str, runs))} logged nothing to draw; give runs that trained for a while")
    return curves


def _of_run(run: Path) -> dict[str, tuple[dict[str, Curve], float]]:
    """Its recipe -> (metric -> curve, samples seen in all)."""
    if not (run / "config.yaml").is_file() or not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} holds no config.yaml and metrics.jsonl; give run folders of `python train.py`")
    config = read("train", yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    trainer = config.trainer
    devices = trainer.devices if isinstance(trainer.devices, int) else 1
    per_step = config.data.batch_size * devices * trainer.num_nodes * trainer.accumulate
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if not lines:
        return {}
    first, metrics = lines[0]["step"], {}
    for name in SHOWN.get(config.recipe, ("loss_mean",)):
        points = [(line["step"], line[f"train/{name}"]) for line in lines if line.get(f"train/{name}") is not None]
        if points:
            steps, values = np.array(points, float).T
            metrics[name] = (steps - first + 1) * per_step, values
    return {config.recipe: (metrics, (lines[-1]["step"] - first + 1) * per_step)}


def _of_table(path: Path) -> dict[str, tuple[dict[str, Curve], float]]:
    """What `_of_run` gave for the runs of a table; what they saw behind their last logged point is lost."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                point = float(row["samples"]), float(row["value"])
                points.setdefault(row["recipe"], {}).setdefault(row["metric"], []).append(point)
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no table of curves; give one that `evaluation curves` wrote") from None
    return {
        recipe: (
            {name: tuple(np.array(curve).T) for name, curve in metrics.items()},
            max(curve[-1][0] for curve in metrics.values()),
        )
        for recipe, metrics in points.items()
    }


def draw_curves(runs: Sequence[Path], out: Path) -> None:
    """One panel per recipe: the logged values, pale, and their running mean; beside the figure the values as CSV."""
    from matplotlib.figure import Figure

    curves = read_curves(runs)
    columns, rows = min(len(curves), COLUMNS), -(-len(curves) // COLUMNS)
    figure = Figure((4.2 * columns, 3 * rows), layout="constrained")
    for place, (recipe, metrics) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        for name, (samples, values) in metrics.items():
            window = max(1, min(WINDOW, len(values) // 5))
            mean = np.convolve(values, np.ones(window) / window, "valid")
            (line,) = axes.plot(samples[window // 2 :][: len(mean)] / 1000, mean, label=name)
            axes.plot(samples / 1000, values, color=line.get_color(), alpha=0.25, linewidth=0.6)
        axes.set(title=recipe, xlabel="samples seen, thousands")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    with out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("recipe", "metric", "samples", "value"))
        for recipe, metrics in curves.items():
            for name, points in metrics.items():
                table.writerows((recipe, name, int(seen), f"{value:.5g}") for seen, value in zip(*points, strict=True))
