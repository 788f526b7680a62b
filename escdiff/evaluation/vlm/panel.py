"""Asks a judge and keeps every answer by the content of its question, so that nothing is paid for twice."""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.evaluation.report.writing import write
from escdiff.evaluation.vlm.messages import Model, conversation
from escdiff.evaluation.vlm.reply import Reply, read_score
from escdiff.evaluation.vlm.rubrics import Rubrics
from escdiff.support.errors import UserError

FOLDER = "judge"  # of the answers, within --out
SAY_AFTER, HOPELESS = 20, 10  # answers before an estimate of the cost; without any score, before giving up
VERSION = 1  # raise when the same question would be put in other words


@dataclass(frozen=True)
class Item:
    """One question about one picture.

    Attributes:
        text: the question, its prompt filled in. pictures: references first, the judged one last.
    """

    text: str
    pictures: tuple[Image.Image, ...]


@dataclass
class Bill:
    """Answers that were `paid` in this run and those that an earlier run `stored`; the tokens are of both."""

    paid: int = 0
    stored: int = 0
    scored: int = 0
    missing: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Panel:
    """A judge with its questions and its memory.

    Attributes:
        out: folder of the evaluation, whose `judge/` keeps the answers.
        most: answers to be paid for in this run; None for no limit.
    """

    model: Model
    rubrics: Rubrics
    out: Path
    most: int | None = None
    bill: Bill = field(default_factory=Bill)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _asking: dict[str, threading.Lock] = field(default_factory=dict)
    _expected: int = 0

    def ask(self, items: Sequence[Item], advance: Callable[[int], object] = lambda count: None) -> list[float | None]:
        """A score from 0 to `rubrics.scale` for each item; None where no answer held one.

        Args:
            advance: called with 1 for each item that is through.

        Raises:
            UserError: the judge is out of reach, none of its first answers holds a score, or `most` are paid.
        """

        def score_of(item: Item) -> float | None:
            scores = [self._answer(item, number) for number in range(self.rubrics.repeats)]
            advance(1)
            numeric = [score for score in scores if score is not None]
            return sum(numeric) / len(numeric) if numeric else None

        pool = ThreadPoolExecutor(self.rubrics.parallel)
        try:
            return list(pool.map(score_of, items))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error nothing more is paid

    def expect(self, items: int) -> None:
        """Say how many questions there will be, for the estimate of the cost."""
        self._expected = items * self.rubrics.repeats
        print(f"judge {self.model.identity}: {self._expected:,} questions", file=sys.stderr, flush=True)

    def cost(self, tokens_in: float, tokens_out: float) -> str:
        """Tokens, and what they cost where the rubrics have prices."""
        money = (tokens_in * self.rubrics.price_in + tokens_out * self.rubrics.price_out) / 1e6
        price = f", which cost {money:.2f}" if money else ""
        return f"{tokens_in:,.0f} tokens in and {tokens_out:,.0f} out{price}"

    def summary(self) -> str:
        """A sentence for people: questions, answers, tokens and costs."""
        bill = self.bill
        return (
            f"{bill.paid:,} answers in this run and {bill.stored:,} from before, {bill.missing:,} questions without a "
            f"score, left out of all means; {self.cost(bill.tokens_in, bill.tokens_out)}"
        )

    def about(self) -> dict[str, Any]:
        """The judge, its questions and their costs, for run.json."""
        return {"model": self.model.identity, "rubrics": asdict(self.rubrics), **asdict(self.bill)}

    def _answer(self, item: Item, number: int) -> float | None:
        """The kept answer, or a new one; every single one is on the disk before the next is asked for."""
        pictures = [_shrunk(picture, self.rubrics.side) for picture in item.pictures]
        key = self._key(item.text, pictures, number)
        with self._lock:
            new, asking = key not in self._asking, self._asking.setdefault(key, threading.Lock())
        with asking:  # equal questions of one run wait for the first one's answer
            score = self._score(item.text, pictures, number, self.out / FOLDER / key[:2] / f"{key}.json", new)
        with self._lock:
            self.bill.scored += score is not None
            self.bill.missing += score is None
            self._say()
        return score

    def _score(
        self, text: str, pictures: Sequence[Image.Image], number: int, path: Path, new: bool
    ) -> float | None:  # fmt: skip
        replies = _stored_replies(path)
        if new:
            with self._lock:
                self.bill.stored += len(replies)
                for reply in replies:
                    self._count(reply)
        score = read_score(replies[-1].text, self.rubrics.scale) if replies else None
        while score is None and len(replies) < self.rubrics.attempts:
            with self._lock:
                self._check()
                self.bill.paid += 1
            answers = [reply.text for reply in replies]
            reply = self.model.reply(conversation(self.rubrics.system, text, pictures, self.rubrics.scale, answers))
            replies.append(reply)
            score = read_score(reply.text, self.rubrics.scale)
            about = {"judge": self.model.identity, "question": text, "number": number, "score": score}
            write(path, json.dumps(about | {"replies": [asdict(entry) for entry in replies]}, indent=1) + "\n")
            with self._lock:
                self._count(reply)
        return score

    def _key(self, text: str, pictures: Sequence[Image.Image], number: int) -> str:
        rubrics = self.rubrics
        settings = (VERSION, self.model.identity, rubrics.system, rubrics.scale, rubrics.temperature, text, number)
        digest = hashlib.sha256(repr(settings).encode())
        for picture in pictures:
            digest.update(repr(picture.size).encode() + picture.tobytes())
        return digest.hexdigest()

    def _check(self) -> None:
        if self.most is not None and self.bill.paid >= self.most:
            raise UserError(f"{self.most} answers are paid, as --max-answers says; the same command goes on")
        if not self.bill.scored and self.bill.missing >= HOPELESS:
            problem = f"the first {self.bill.missing} questions to {self.model.identity} brought no score"
            raise UserError(
                f"{problem}; read its answers in {self.out / FOLDER}, and take another judge or other rubrics"
            )

    def _count(self, reply: Reply) -> None:
        self.bill.tokens_in += reply.tokens_in
        self.bill.tokens_out += reply.tokens_out

    def _say(self) -> None:
        bill, done = self.bill, self.bill.scored + self.bill.missing
        if done == SAY_AFTER and self._expected > done:
            all_of = self._expected / done
            whole = self.cost(bill.tokens_in * all_of, bill.tokens_out * all_of)
            print(f"judge: all {self._expected:,} questions will take about {whole}", file=sys.stderr, flush=True)


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    """Shrink a picture as the judge sees it: the longer side has at most so many pixels."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _stored_replies(path: Path) -> list[Reply]:
    try:
        return [Reply(**reply) for reply in json.loads(path.read_text(encoding="utf-8"))["replies"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
