"""Swap triples from Still Life groups: a target, its shape on other material, its material on another shape.

In a group of shapes x materials with a scene per picture, target (i, j) has shape references (i, j' != j) and
appearance references (i' != i, j). No reference shows the target's scene, so copying does not pay.
"""

from collections.abc import Collection

import numpy as np

from escdiff.mini.data.arrays import LABELS
from escdiff.mini.world.world import HELD_OUT_FAMILIES, HELD_OUT_PATTERNS
from escdiff.support.errors import UserError

WINDOW = 512  # targets that are searched for pairs; even, so that none is cut


class SwapPairs:
    """Rows of a dataset that may be targets, and their references.

    Attributes:
        targets: int64 (n,), the rows that have at least one reference of each kind.
    """

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        exclude_families: Collection[str] = HELD_OUT_FAMILIES,
        exclude_patterns: Collection[str] = HELD_OUT_PATTERNS,
        keep: np.ndarray | None = None,
    ) -> None:
        """Index the groups.

        Args:
            columns: "group", "shape_id", "material_id", "family", "pattern", each int64 (N,), as
                `StillLifeArrays` holds them.
            exclude_families, exclude_patterns: pictures with these are neither target nor reference, whatever
                the other attribute.
            keep: bool (N,), the rows to look at; for splits.

        Raises:
            UserError: an excluded word is unknown, or no triple is left.
        """
        allowed = columns["shape_id"] >= 0  # scenes have no place in the grid
        if keep is not None:
            allowed &= keep
        for name, words in (("family", exclude_families), ("pattern", exclude_patterns)):
            allowed &= ~np.isin(columns[name], [_number(name, word) for word in words])
        rows = np.flatnonzero(allowed)
        groups, group = np.unique(columns["group"][rows], return_inverse=True)
        shape, material = columns["shape_id"][rows], columns["material_id"][rows]
        sides = (shape.max() + 1, material.max() + 1) if len(rows) else (0, 0)
        self._table = np.full((len(groups), *sides), -1)  # (groups, shapes, materials) -> row or -1
        self._table[group, shape, material] = rows
        self._names = np.stack([columns["family"], columns["pattern"]])
        self._place = np.full((len(allowed), 3), -1)
        self._place[rows] = np.stack([group, shape, material], 1)
        filled = self._table >= 0
        enough = filled & (filled.sum(2, keepdims=True) > 1) & (filled.sum(1, keepdims=True) > 1)
        self.targets = np.sort(self._table[enough])
        if not len(self.targets):
            raise UserError("the dataset holds no swap triples; render more samples or exclude fewer words")

    def references(self, target: int, rng: np.random.Generator) -> tuple[int, int]:
        """Draw (shape reference row, appearance reference row) for a target row."""
        group, shape, material = self._place[target]
        same_shape = self._table[group, shape]
        same_material = self._table[group, :, material]
        return _other(same_shape, target, rng), _other(same_material, target, rng)

    def instances(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (B,) of the targets' shapes and of their materials, equal where two are the same one."""
        group, shape, material = self._place[targets].T
        shapes, materials = self._table.shape[1:]
        return group * shapes + shape, group * materials + material

    def beside_namesakes(self, targets: np.ndarray) -> np.ndarray:
        """The targets in an order in which most stand in pairs of one family or, by turns, of one pattern.

        A window of targets is paired after the other, so that the order stays nearly as random as it was.
        """
        windows = [targets[first : first + WINDOW] for first in range(0, len(targets), WINDOW)]
        return np.concatenate([_paired(rows, self._names[turn % 2][rows]) for turn, rows in enumerate(windows)])


def _paired(rows: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Rows with equal names two by two, in the order in which the second of them comes; the others behind."""
    waiting: dict[int, int] = {}
    pairs = []
    for row, name in zip(rows.tolist(), names.tolist(), strict=True):
        if name in waiting:
            pairs += [waiting.pop(name), row]
        else:
            waiting[name] = row
    return np.array(pairs + list(waiting.values()), rows.dtype)


def validation_rows(group: np.ndarray, fraction: float) -> np.ndarray:
    """bool (N,): every 1/fraction-th group, so that the choice stays when the dataset grows."""
    if fraction <= 0:
        return np.zeros(len(group), bool)
    period = max(round(1 / fraction), 2)
    return group % period == period - 1


def _other(candidates: np.ndarray, target: int, rng: np.random.Generator) -> int:
    candidates = candidates[(candidates >= 0) & (candidates != target)]
    return int(candidates[rng.integers(len(candidates))])


def _number(name: str, word: str) -> int:
    words = LABELS[name][2]
    if word not in words:
        raise UserError(f"there is no {name} {word!r} to exclude; known are {', '.join(words)}")
    return words.index(word)
