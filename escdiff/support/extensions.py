"""Additions of other packages by entry points: methods, metrics, loss terms and readers of datasets.

A package names its parts in its own pyproject.toml and is installed beside this one, in which nothing is edited:

    [project.entry-points."escdiff.methods"]
    halves = "halves:Halves"
"""

from importlib.metadata import entry_points
from typing import Any

from escdiff.support.errors import UserError

METHODS, METRICS, LOSSES, DATASETS = "escdiff.methods", "escdiff.metrics", "escdiff.losses", "escdiff.datasets"


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages give in a group, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """The object that an installed package registers under a name of a group; None without one.

    Raises:
        UserError: two packages give this name, or it cannot be imported.
    """
    points = list(entry_points(group=group, name=name))
    if not points:
        return None
    packages = sorted(point.dist.name for point in points)
    if len(points) > 1:
        raise UserError(f"{name!r} of {group} is given by the packages {' and '.join(packages)}; uninstall one of them")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        problem = f"{name!r} of {group} is {points[0].value} of the package {packages[0]}, which cannot be imported"
        raise UserError(f"{problem} ({error}); mend or uninstall that package") from error
