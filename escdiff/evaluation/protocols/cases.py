"""The cases of a protocol: one request per picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from escdiff.data.prompts import uses
from escdiff.evaluation.protocols.subjects import Subject, painted, scored
from escdiff.support.errors import UserError

PROMPTS, SWAP, REAL, PAIR = "prompts", "swap", "real", "pair"
FIRST, SECOND = "first", "second"  # names of a pair's placeholders
ABOUT = {
    PROMPTS: "Every subject in every prompt.",
    SWAP: "The shape of each subject in the appearance of the next.",
    REAL: "The real pictures against the others of their subject: what a perfect copy of the subject would score.",
    PAIR: "Two subjects in one picture.",
}
SWAP_PROMPT = "a photo of a <appearance> <shape>"


@dataclass(frozen=True)
class Case:
    """One picture to be made.

    Attributes:
        prompt: with placeholders. text: what CLIP is asked, without.
        shape, appearance: names of the subjects that they are read from; "" where words say it.
        first, second: names of the subjects of a pair; "" elsewhere.
    """

    prompt: str
    text: str
    shape: str
    appearance: str
    seed: int
    first: str = field(default="", repr=False)  # pictures are kept by a hash of what a case shows
    second: str = field(default="", repr=False)

    @property
    def whole(self) -> bool:
        """Whether the picture should show one subject as it is."""
        return bool(self.shape) and self.shape == self.appearance

    @property
    def subject(self) -> str:
        """The subject whose references are customized; of a swap, the one that gives the shape, of a pair the first."""
        return self.shape or self.appearance or self.first

    @property
    def names(self) -> list[str]:
        """All subjects that it shows, each once."""
        return list(dict.fromkeys(filter(None, (self.shape, self.appearance, self.first, self.second))))

    @property
    def swapped(self) -> bool:
        """Whether shape and appearance are those of two subjects."""
        return bool(self.shape and self.appearance) and self.shape != self.appearance

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {key: value for key, value in asdict(self).items() if value or key not in (FIRST, SECOND)}

    @classmethod
    def from_dict(cls, values: dict) -> "Case":
        """The inverse of `to_dict`."""
        return cls(**values)


def check_swap(subjects: Sequence[Subject]) -> None:
    """Raises:
    UserError: a single subject, which has no other to swap with.
    """
    if len(subjects) == 1:
        raise UserError(f"there is one subject, {subjects[0].name!r}, but --swap mixes two; add one or leave it out")


def cases(task: str, subjects: Sequence[Subject], number: int, seeds: Sequence[int]) -> list[Case]:
    """The cases of one subject; the same seeds for every prompt and subject.

    Raises:
        UserError: a swap of one subject alone.
    """
    subject = subjects[number]
    if task == REAL:
        return [Case(path.name, "", subject.name, subject.name, 0) for path in subject.pictures]
    if task == SWAP:
        check_swap(subjects)
        if not any(uses(painted(template), "shape") for template in subject.templates):
            return []  # a style, which has no shape
        other, text = subjects[(number + 1) % len(subjects)], scored(SWAP_PROMPT, subject.category)
        return [Case(SWAP_PROMPT, text, subject.name, other.name, seed) for seed in seeds]
    drawn = []
    for i, template in enumerate(subject.templates):
        prompt, text = painted(template), subject.texts[i] if subject.texts else scored(template, subject.category)
        if task == PAIR:
            pair = {FIRST: subject.name, SECOND: subject.partner.name}
            drawn += [Case(prompt, text, "", "", seed, **pair) for seed in seeds]
            continue
        shape, appearance = (uses(prompt, a) * subject.name for a in ("shape", "appearance"))
        drawn += [Case(prompt, text, shape, appearance, seed) for seed in seeds]
    return drawn
