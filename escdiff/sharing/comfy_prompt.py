"""A prompt with placeholders, read by ComfyUI's own text encoder: LoRAs, CLIP skip and emphasis act as ever.

Its tokens may be word vectors instead of numbers, which is how it takes textual inversions. So every cell's vectors are
put among the tokens and the prompt is read once per cell. Of a CLIP the public `tokenize` and `encode_from_tokens` are
used. Legend: L layer cell, S stage, K vectors per placeholder, N of all placeholders, T token position, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from escdiff.concept import Concept
from escdiff.conditioning.text_tower import find_placeholders, normalized
from escdiff.sharing.layouts import TOWERS
from escdiff.support.errors import UserError

MARKERS = ("sks", "ohwx", "olis")  # words of one token in CLIP's vocabulary, of which a prompt hardly has all
Sections = dict[str, list[list[tuple]]]  # text encoder -> sections of 77 -> (token, weight)


def encode_prompt(clip: Any, concept: Concept, prompt: str) -> tuple[Tensor, Tensor | None]:
    """The grid (1, L, S, T, D), and of SDXL the pooled states (1, P), the mean over the cells.

    Raises:
        UserError: no placeholder in the prompt, or one that the concept lacks; another text encoder than its own.
    """
    prompt, placeholders = normalized(prompt), concept.placeholders()
    matches = find_placeholders(prompt, placeholders)
    names = [match.group() for match in matches]
    if not matches or set(names) - set(placeholders):
        unknown = next((name for name in names if name not in placeholders), None)
        problem = f"has the unknown placeholder {unknown}" if matches else "names no concept"
        raise UserError(f"the prompt {prompt!r} {problem}; this one has {', '.join(placeholders)}: write one of them")
    counts = [placeholders[name].shape[3] for name in names]
    marker, ids = _find_marker(clip, prompt)
    sections = clip.tokenize(_mark(prompt, [match.span() for match in matches], counts, marker))
    vectors_LSND = torch.cat([placeholders[name] for name in names], dim=3)[0]
    layers, stages = vectors_LSND.shape[:2]
    cells = [
        clip.encode_from_tokens(_splice(sections, ids, vectors_LSND[layer, stage]), return_pooled=True)
        for layer in range(layers)
        for stage in range(stages)
    ]
    states = torch.cat([states for states, _ in cells])
    if states.shape[-1] != concept.width:
        problem = f"the concept was made for {concept.base_model!r} with text width {concept.width}"
        raise UserError(f"{problem}, this CLIP has {states.shape[-1]}; use the model it was made for")
    grid = states.unflatten(0, (1, layers, stages))
    pooled = None if cells[0][1] is None else torch.stack([pooled for _, pooled in cells]).mean(0)
    return grid, pooled


def _find_marker(clip: Any, prompt: str) -> tuple[str, dict[str, int]]:
    """A word of one token that the prompt has not, and its number by text encoder."""
    empty = clip.tokenize("")
    if set(empty) != {"l", "g"} and len(empty) != 1:
        problem = f"this CLIP has the text encoders {', '.join(empty)}"
        raise UserError(f"{problem}; expected that of Stable Diffusion 1.x or 2.x, or the two of XL")
    for word in MARKERS:
        rows = {key: sections[0] for key, sections in clip.tokenize(word).items()}
        if word not in prompt.lower() and all(row[2][0] == empty[key][0][1][0] for key, row in rows.items()):
            return word, {key: row[1][0] for key, row in rows.items()}
    raise UserError(
        f"the prompt {prompt!r} has all of {', '.join(MARKERS)}, which stand for word vectors: leave one out"
    )


def _mark(prompt: str, spans: Sequence[tuple[int, int]], counts: Sequence[int], marker: str) -> str:
    """The prompt with the marker in each placeholder's place, as often as that has vectors."""
    text, end = "", 0
    for (start, stop), count in zip(spans, counts, strict=True):
        text += f"{prompt[end:start]} {' '.join([marker] * count)} "
        end = stop
    return text + prompt[end:]


def _splice(sections: Sections, ids: Mapping[str, int], vectors_ND: Tensor) -> Sections:
    """The tokens with word vectors in the markers' place, to each text encoder its part of the width."""
    keys = ["l", "g"] if len(sections) > 1 else list(sections)
    widths = list(TOWERS.values()) if len(keys) > 1 else [vectors_ND.shape[1]]
    if sum(widths) != vectors_ND.shape[1]:
        raise UserError(f"the concept has text width {vectors_ND.shape[1]}; expected {sum(widths)} for this CLIP")
    spliced = {}
    for key, part in zip(keys, vectors_ND.split(widths, dim=1), strict=True):
        vectors = iter(part)
        spliced[key] = [
            [(next(vectors), *rest) if _is(token, ids[key]) else (token, *rest) for token, *rest in section]
            for section in sections[key]
        ]
    return spliced


def _is(token: Any, number: int) -> bool:
    """Whether a token is this one; others may be vectors."""
    return isinstance(token, int) and token == number
