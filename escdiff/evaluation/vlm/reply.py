"""Answers of a judge, and the score in each."""

import json
import math
import re
from dataclasses import dataclass

REMINDER = 'Answer with JSON only, such as {{"score": 1, "reason": "..."}}, where score is a whole number from 0 to {}.'
LINE = re.compile(r"\bscore\W{0,6}\s*(\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*(\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Reply:
    """One answer and the tokens that were paid for it; 0 where nobody counted."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


def read_score(text: str, scale: int) -> int | None:
    """The whole number from 0 to `scale` that an answer gives; None where it gives none, several or another one.

    Read are a JSON object with "score", alone or within other text, and a line such as "Score: 3". Nothing is guessed.
    """
    scores = [_whole(value) for value in _of_json(text)]
    scores = scores or [
        _whole(number) if int(whole or scale) == scale else None for number, whole in LINE.findall(text)
    ]
    if len(set(scores)) != 1 or scores[0] is None:
        return None
    return scores[0] if 0 <= scores[0] <= scale else None


def _of_json(text: str) -> list[object]:
    """The scores of all JSON objects in a text that have one."""
    decoder, scores = json.JSONDecoder(), []
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, place)
        except ValueError:
            continue
        if "score" in value:
            scores.append(value["score"])
    return scores


def _whole(value: object) -> int | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
