"""Models look at many pictures at once: samples run ahead until a batch is full, and go on in their order."""

from collections.abc import Callable, Iterator
from typing import Any

from data_prep.dataset import Reject
from data_prep.guard import Guard
from escdiff.support.errors import UserError

SAID = "__said__"  # where a sample carries what the model said of it


def ahead(
    raws: Iterator[dict[str, Any]], guard: Guard, ask: Callable[[dict[str, Any]], Any],
    answer: Callable[[list], list], batch: int,
) -> Iterator[dict[str, Any] | Reject]:  # fmt: skip
    """The samples in order, with the model's answer under `SAID` where there was a question.

    Args:
        ask: the question to a sample, which may fail, or None where none is needed.
        answer: up to `batch` questions -> as many answers.
    """
    rows: list[tuple[Any, Any]] = []
    pending = 0

    def flush() -> Iterator[dict[str, Any] | Reject]:
        questions = [question for _, question in rows if question is not None]
        answers = iter(answer(questions) if questions else ())
        for raw, question in rows:
            yield raw if question is None else {**raw, SAID: next(answers)}
        rows.clear()

    for number, raw in enumerate(raws):
        if number < guard.done:
            yield raw
            continue
        try:
            with guard.sample(raw["__key__"]):
                rows.append((raw, ask(raw)))
        except UserError as error:
            rows.append((Reject(raw["__key__"], str(error)), None))
        pending += rows[-1][1] is not None
        if pending == batch or not pending:
            yield from flush()
            pending = 0
    yield from flush()
