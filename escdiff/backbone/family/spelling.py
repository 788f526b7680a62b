"""Placeholders spelled out as ordinary words, and the tokens at which those words end up.

Legend: K vectors of a placeholder, T token positions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from escdiff.conditioning.text_tower import normalized
from escdiff.support.errors import UserError

ANY = re.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class Part:
    """What a placeholder stands for, or a part of it: words, and the number of their vectors."""

    attribute: str  # names the vectors
    words: str
    count: int


@dataclass(frozen=True)
class Spelled:
    """A prompt in ordinary words, with the places (first character, one behind the last) of each part's words."""

    text: str
    places: tuple[tuple[Part, int, int], ...] = ()


def spell(prompt: str, known: Mapping[str, tuple[Part, ...]], lower: bool = False) -> Spelled:
    """A prompt with every placeholder replaced by its words.

    Args:
        known: placeholder -> its parts, whose words stand one behind the other.
        lower: the pipeline reads small letters only.

    Raises:
        UserError: a placeholder that is not known.
    """
    case = str.lower if lower else str
    prompt, text, places, end = normalized(prompt).strip(), "", [], 0
    for match in ANY.finditer(prompt):
        if match.group() not in known:
            raise UserError(
                f"the prompt {prompt!r} has the unknown placeholder {match.group()}; known here: "
                f"{', '.join(sorted(known))}; correct it or give a concept that has it"
            )
        text += case(prompt[end : match.start()])
        for index, part in enumerate(known[match.group()]):
            text += " " * bool(index)
            places.append((part, len(text), len(text) + len(case(part.words))))
            text += case(part.words)
        end = match.end()
    return Spelled(text + case(prompt[end:]), tuple(places))


def locate(
    spelled: Spelled, tokenizer: PreTrainedTokenizerBase, length: int, before: str = "", behind: str = "", drop: int = 0
) -> list[tuple[Part, int, int]]:
    """(part, k, token) for every token of a placeholder's words: which of its vectors belongs there.

    A vector serves several tokens where the words have more tokens than it has vectors.

    Args:
        length: T, at which the pipeline cuts the text.
        before, behind: what the pipeline writes around every prompt.
        drop: tokens at the start of all that, which it drops from the text.

    Raises:
        UserError: words beyond the text encoder's last token, or fewer tokens than vectors.
    """
    text, shift = before + spelled.text + behind, len(before)
    encoded = tokenizer(text, truncation=True, max_length=length + drop, return_offsets_mapping=True)
    found = []
    for part, first, last in spelled.places:
        first, last = first + shift, last + shift
        tokens = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < last and b > first and b > a]
        whole = bool(tokens) and encoded["offset_mapping"][tokens[-1]][1] >= last
        if not whole:
            raise UserError(
                f"the words {part.words!r} end beyond the {length} tokens that the text encoder reads of "
                f"{spelled.text!r}: shorten the text before them"
            )
        if len(tokens) < part.count:
            raise UserError(
                f"the words {part.words!r} have {len(tokens)} tokens for {part.count} vectors; expected at least as "
                "many: make the concept with longer words"
            )
        found += [(part, index * part.count // len(tokens), token - drop) for index, token in enumerate(tokens)]
    return found
