"""What a protocol asks for, picture by picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from escdiff.data.prompts import uses
from escdiff.evaluation.protocols.subjects import Subject, painted, scored

PROMPTS, SWAP, REAL = "prompts", "swap", "real"
ABOUT = {
    PROMPTS: "Every subject in every prompt.",
    SWAP: "The shape of each subject in the appearance of the next.",
    REAL: "The real pictures against the others of their subject: what a perfect copy of the subject would score.",
}
SWAP_PROMPT = "a photo of a <appearance> <shape>"


@dataclass(frozen=True)
class Case:
    """One picture to be made.

    Attributes:
        prompt: with placeholders. text: what CLIP is asked, without.
        shape, appearance: names of the subjects that they are read from; "" where words say it.
    """

    prompt: str
    text: str
    shape: str
    appearance: str
    seed: int

    @property
    def whole(self) -> bool:
        """Whether the picture should show one subject as it is."""
        return bool(self.shape) and self.shape == self.appearance

    @property
    def subject(self) -> str:
        return self.shape or self.appearance

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Case":
        return cls(**values)


def cases(task: str, subjects: Sequence[Subject], number: int, seeds: Sequence[int]) -> list[Case]:
    """Of one subject; the same seeds for every prompt and subject."""
    subject = subjects[number]
    if task == REAL:
        return [Case(path.name, "", subject.name, subject.name, 0) for path in subject.pictures]
    if task == SWAP:
        other, text = subjects[(number + 1) % len(subjects)], scored(SWAP_PROMPT, subject.category)
        return [Case(SWAP_PROMPT, text, subject.name, other.name, seed) for seed in seeds]
    found = []
    for template in subject.templates:
        prompt, text = painted(template), scored(template, subject.category)
        shape, appearance = (uses(prompt, a) * subject.name for a in ("shape", "appearance"))
        found += [Case(prompt, text, shape, appearance, seed) for seed in seeds]
    return found
