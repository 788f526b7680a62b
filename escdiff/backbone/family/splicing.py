"""Learned words inside a transformer's text encoder, such as T5 or Gemma: what they add to its embeddings.

Every cell of layers and stages then reads a text of its own; it reaches the layers as a residual at all tokens, so
that this takes layers that read the same text: cross-attention, not a stream. A text is encoded once per cell.
Legend: B prompts, L layers, S stages, N = cells that differ, K positions, T tokens, D width of the embeddings, W width
of the text as a layer reads it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from escdiff.backbone.family.base import Family
from escdiff.backbone.family.reading import Place
from escdiff.backbone.family.residuals import BASE, Residuals, add_residual
from escdiff.conditioning import Binding, ConditioningSpace
from escdiff.support.errors import UserError

Encode = Callable[[int, int], Tensor]


@contextmanager
def spliced(encoder: nn.Module, values_NKD: Tensor, tokens_K: Tensor) -> Iterator[None]:
    """Within the block, N texts that a text encoder reads together get these values on their tokens, with gradients."""
    words = encoder.get_input_embeddings().weight

    def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return add_residual(output, values_NKD.to(output), tokens_K.to(output.device).expand(len(output), -1))

    shared = [module for module in encoder.modules() if getattr(module, "weight", None) is words]  # T5 calls its copy
    with Binding([module.register_forward_hook(add) for module in shared]):
        yield


def spliced_residuals(
    family: Family, model: nn.Module, encoder: nn.Module, texts: Sequence[str], rows: Sequence[Sequence[Place]],
    vectors: Mapping[str, Tensor], space: ConditioningSpace, plain: Tensor, tokens: int, encode: Encode,
) -> Residuals:  # fmt: skip
    """What learned words make of each layer's text, at its first tokens.

    Args:
        encoder: of the texts.
        texts: in ordinary words. rows: where the placeholders' words stand in what the text encoder reads.
        vectors: by `Part.attribute`, (B|1, L|1, S|1, K, D), added to the words' own embeddings.
        plain: (B, T, D'), the states of the texts as they are.
        tokens: of the longest text; what is behind them is masked.
        encode: of a text's number and N, its states N times (N, T, D').

    Raises:
        UserError: more tokens than residuals have positions.
    """
    if tokens > 2 * BASE:
        raise UserError(f"a text of {tokens} tokens has learned words in it; expected at most {2 * BASE}: shorten it")
    shape, shared = (space.num_layers, space.num_stages), all(len(value) == 1 for value in vectors.values())
    cells = [max(value.shape[axis] for value in vectors.values()) for axis in (1, 2)]
    entered, found, made = family.enter(model, plain[:, :tokens]), [], {}
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if not row:
            found.append(entered.new_zeros(*shape, *entered.shape[1:]))
            continue
        key = text if shared else number
        if key not in made:
            own = [(vectors[part.attribute], index) for part, index, _ in row]
            values = [value[min(number, len(value) - 1), :, :, index].expand(*cells, -1) for value, index in own]
            at = torch.tensor([token for _, _, token in row])
            with spliced(encoder, torch.stack(values, 2).flatten(0, 1), at):
                states = encode(number, cells[0] * cells[1])[:, :tokens]
            change = family.enter(model, states.to(entered)) - entered[number]
            made[key] = change.unflatten(0, cells).expand(*shape, -1, -1)
        found.append(made[key])
    return Residuals(torch.stack(found), torch.arange(tokens, device=entered.device).expand(len(rows), -1))
