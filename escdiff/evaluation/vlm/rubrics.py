"""Rubrics of a judge from a YAML file: questions, scale, repeats and prices."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from escdiff.support.config.folder import read_yaml
from escdiff.support.errors import UserError

AGAINST = {  # -> the pictures shown before the judged one, and when it is asked
    "whole": "the reference, of pictures that should show one subject as it is",
    "style": "the reference, of pictures that should take its looks alone",
    "shape": "the shape's reference; in swaps also the appearance's, as a leak",
    "appearance": "the appearance's reference; in swaps also the shape's, as a leak",
    "pair": "both references, of pictures that should show two subjects",
    "text": "none; {prompt} in the question is the prompt",
}
OVERALL = {
    "product": "of the means, as DreamBench++ has it",
    "geometric": "the mean of each picture's geometric mean, as OmniContext has it",
}


@dataclass(frozen=True)
class Question:
    """One question about a picture.

    Attributes:
        score: the name that its answers count under; two questions may share one. against: of `AGAINST`.
    """

    score: str
    against: str
    text: str


@dataclass(frozen=True)
class Rubrics:
    """All questions, and how they are asked.

    Attributes:
        scale: the best score; the worst is 0, and all are whole numbers.
        overall: how (of `OVERALL`) the scores `overall_of` make one; "" for none.
        repeats: opinions on each picture, whose mean counts. attempts: at an answer with a score, before it is missing.
        parallel: questions at once, of an endpoint. side: pixels of the longer side of what is shown.
        price_in, price_out: per million tokens, in any currency; 0 where they are not known.
    """

    questions: tuple[Question, ...]
    scale: int = 4
    system: str = ""
    overall: str = ""
    overall_of: tuple[str, ...] = ()
    repeats: int = 1
    attempts: int = 3
    parallel: int = 8
    temperature: float = 0.0
    max_tokens: int = 200
    side: int = 512
    price_in: float = 0.0
    price_out: float = 0.0

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores, each once."""
        return tuple(dict.fromkeys(question.score for question in self.questions))


def read_rubrics(name: str) -> Rubrics:
    """Those of `configs/judge/NAME.yaml`, or of a YAML file of your own.

    Raises:
        UserError: no such file, or something in it is unknown or of the wrong kind.
    """
    path, values = read_yaml("--rubrics", name, "judge", "configs/judge")
    if not isinstance(values, dict) or not isinstance(values.get("questions"), dict) or not values["questions"]:
        raise UserError(f"{path} has no questions; see configs/judge/dreambench_plus.yaml")
    questions = tuple(_question(path, key, entry) for key, entry in values.pop("questions").items())
    return _checked(path, questions, values)


def _question(path: Path, name: str, entry: Any) -> Question:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str) or entry.get("against") not in AGAINST:
        raise UserError(f"the question {name} of {path} needs a text, and against: one of {', '.join(AGAINST)}")
    if unknown := entry.keys() - {"text", "against", "score"}:
        raise UserError(f"the question {name} of {path} has {', '.join(unknown)}; expected text, against and score")
    if entry["against"] == "text" and "{prompt}" not in entry["text"]:
        raise UserError(f"the question {name} of {path} has no {{prompt}} where the prompt belongs; write it there")
    return Question(str(entry.get("score", name)), entry["against"], " ".join(entry["text"].split()))


def _checked(path: Path, questions: tuple[Question, ...], values: dict[str, Any]) -> Rubrics:
    least = {"scale": 1, "repeats": 1, "attempts": 1, "parallel": 1, "max_tokens": 1, "side": 32}
    defaults = {field.name: field.default for field in fields(Rubrics) if field.name != "questions"}
    if unknown := values.keys() - defaults.keys():
        raise UserError(f"{path} has {', '.join(unknown)}; expected questions and {', '.join(defaults)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in values.items():
        kind = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
        number = isinstance(value, int | float)
        if not isinstance(value, kind) or isinstance(value, bool) or (number and value < least.get(key, 0)):
            raise UserError(
                f"{path} has {key}: {value!r}; expected such as {key}: {least.get(key, defaults[key])}, or more"
            )
    rubrics = Rubrics(questions, **values)
    if rubrics.overall and (rubrics.overall not in OVERALL or not set(rubrics.overall_of) <= set(rubrics.scores)):
        problem = f"overall: {rubrics.overall} of {', '.join(rubrics.overall_of)}"
        raise UserError(f"{path} has {problem}; expected {' or '.join(OVERALL)} of {', '.join(rubrics.scores)}")
    return rubrics
