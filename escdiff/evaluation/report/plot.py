"""Figures as SVG whose text stays text."""

from collections.abc import Collection, Mapping
from pathlib import Path


def score_against_time(
    points: Mapping[str, tuple[float, float]], path: Path, xlabel: str, ylabel: str, ours: Collection[str] = (),
    top: float = 100.0,
) -> None:  # fmt: skip
    """Name -> (seconds, score), seconds on a logarithmic axis; `ours` are marked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure((8, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, (seconds, score) in points.items():
        point = max(seconds, 1e-3), score
        axes.plot(*point, "o", color="tab:red" if name in ours else "tab:blue")
        axes.annotate(name, point, (6, 3), textcoords="offset points")
    axes.set(xscale="log", ylim=(0, top), xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.15)  # room for the names
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
