"""Rejected samples, and their reasons."""

from dataclasses import dataclass

from escdiff.support.errors import UserError

BAD, LEFT_OUT = "bad", "left out"


@dataclass(frozen=True)
class Reject:
    """A sample that does not go on: `bad` ones are damaged or forbidden, `left out` ones a filter's choice."""

    key: str
    reason: str
    kind: str = BAD
    source: str = ""


class LeftOut(UserError):
    """Raised by a stage for a sample that its filter does not let through."""
