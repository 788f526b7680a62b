"""Parts of an edit bench's task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from escdiff.evaluation import choices
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.editing.cases import Case
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.world.edits import Edit
from escdiff.support.errors import UserError

Editor = Callable[[Tools, Case], Image.Image | None]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: of its files.
        draw: (seed, count) -> edits; more of them begin with the same ones.
        editors: name -> what gives a picture, or None where it cannot serve the case.
        judge: records of cases and what an editor made of them.
        scores: columns of the table, and `more` of a second one.
        note: what the scores mean, for the report.
        reference: the picture that a case's object or look is taken from, for the sheet; None where there is none.
    """

    name: str
    draw: Callable[[int, int], list[Edit]]
    editors: Mapping[str, Editor]
    judge: Callable[[Tools, Sequence[Case], Sequence[Image.Image]], list[Record]]
    scores: tuple[str, ...]
    note: str
    more: tuple[str, ...] = ()
    reference: Callable[[Case], Image.Image | None] = lambda case: None

    def choose(self, names: str, without: Sequence[str] = ()) -> list[str]:
        """Names of its editors, from "all" or a list with commas.

        Args:
            without: editors whose model was not given.

        Raises:
            UserError: an unknown name, none, or one whose model was not given.
        """
        if names == "all":
            return [name for name in self.editors if name not in without]
        chosen = choices.choose("--methods", names, self.editors)
        if missing := [name for name in chosen if name in without]:
            raise UserError(f"--methods names {missing[0]} without its model; give the folder that its training wrote")
        return [name for name in self.editors if name in chosen]
