"""A question as a conversation, the same for every judge."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from escdiff.evaluation.vlm.reply import REMINDER, Reply

Message = tuple[str, Sequence[str | Image.Image]]  # role, and texts and pictures in their order


class Model(Protocol):
    """A model that answers: `Endpoint` or `LocalModel`."""

    identity: str

    def reply(self, messages: Sequence[Message]) -> Reply:
        """The next answer of a conversation."""


def conversation(
    system: str, text: str, pictures: Sequence[Image.Image], scale: int, answers: Sequence[str] = ()
) -> list[Message]:
    """The question with its pictures, numbered from 1, and after each answer without a score a reminder.

    Args:
        pictures: references first, the judged one last. answers: those so far.
    """
    parts: list[str | Image.Image] = []
    for number, picture in enumerate(pictures, 1):
        parts += [f"Picture {number}{' (to be judged)' if number == len(pictures) else ' (reference)'}:", picture]
    reminder = REMINDER.format(scale)
    messages: list[Message] = [("system", [system])] if system else []
    messages.append(("user", [*parts, f"{text} {reminder}"]))
    for answer in answers:
        messages += [("assistant", [answer]), ("user", [f"That holds no score. {reminder}"])]
    return messages
