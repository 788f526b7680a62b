"""Prompt weighting by other tools, such as compel, with a concept's placeholders in the prompt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.text_tower import normalized
from escdiff.pipelines.words import words_of
from escdiff.support.errors import UserError


def weighted(pipeline: DiffusionPipeline, prompt: str, encode: Callable[[str], Any]) -> Any:
    """`prompt_embeds` of a prompt through a tool of its own, such as compel's prompt weighting, cell by cell.

    Placeholders become ordinary words that the prompt does not have, and those words' embeddings the concept's.
    Encode the negative prompt likewise. `weighted(pipe, "a (<appearance>)1.4 mug", Compel(...))`

    Args:
        encode: text -> (1, T, D), or (1, T, D) and pooled (1, P) as for SDXL.

    Returns:
        What `encode` returns, packed for the pipeline: (1, S*L*T + H, D), and the mean of the pooled.

    Raises:
        UserError: embeddings of another length than the text encoder's.
    """
    words, prompt = words_of(pipeline), normalized(prompt)
    encoder, space, vectors = words.encoder, words.space, words.vectors
    present = {match.group() for match in encoder.towers[0].placeholders(prompt, vectors)} & vectors.keys()
    used = {name: vectors[name][0] for name in vectors if name in present}
    text, stand_ins = prompt, {}
    free = _free_words(encoder, prompt)
    for name, value in used.items():
        own = [next(free) for _ in range(value.shape[2])]
        text = text.replace(name, " ".join(word for word, _ in own))
        stand_ins[name] = [number for _, number in own]
    cells, sizes = [], (space.num_stages, space.num_layers) if used else (1, 1)
    for stage in range(sizes[0]):
        for layer in range(sizes[1]):
            here = {n: v[min(layer, v.shape[0] - 1), min(stage, v.shape[1] - 1)] for n, v in used.items()}
            with ExitStack() as stack, torch.no_grad():
                first = 0
                for tower in encoder.towers:
                    own = {n: v[:, first : first + tower.width] for n, v in here.items()}
                    first += tower.width
                    stack.enter_context(tower.embedding(partial(_replace, stand_ins=stand_ins, vectors=own)))
                cells.append(encode(text))
    grid, pooled = zip(*(cell if isinstance(cell, tuple) else (cell, None) for cell in cells), strict=True)
    if grid[0].shape[1] != encoder.max_length:
        raise UserError(f"encode gave embeddings of {grid[0].shape[1]} tokens; expected {encoder.max_length}")
    grid_BLSTD = torch.stack(grid, 1).unflatten(1, sizes).transpose(1, 2)
    ids = encoder.towers[0].tokenize(text, {}).ids
    firsts = {numbers[0]: name for name, numbers in stand_ins.items()}
    slots = [(firsts[number], position) for position, number in enumerate(ids) if number in firsts]
    states = words.pack(words.fused(grid_BLSTD, [slots]), [slots])
    return states if pooled[0] is None else (states, torch.stack(pooled).mean(0))


def _free_words(encoder: PromptEncoder, prompt: str) -> Iterator[tuple[str, int]]:
    """Words of one token that the prompt does not have, the rarest first, and their ids."""
    tower = encoder.towers[0]
    taken = set(tower.word_ids(prompt))
    for token, number in sorted(tower.tokenizer.get_vocab().items(), key=lambda item: -item[1]):
        word = token.removesuffix("</w>")
        if word.isascii() and word.isalpha() and number not in taken and tower.word_ids(word) == [number]:
            yield word, number


def _replace(
    ids: Tensor, embedded: Tensor, stand_ins: Mapping[str, Sequence[int]], vectors: Mapping[str, Tensor]
) -> Tensor:
    for name, numbers in stand_ins.items():
        for number, vector in zip(numbers, vectors[name], strict=True):
            embedded = torch.where((ids == number)[..., None], vector.to(embedded), embedded)
    return embedded
