"""What travels behind the cells of a packed conditioning: whose it is, and what is true of each of its rows.

A pipeline repeats, joins and moves its `prompt_embeds` and calls a U-Net that other threads use too. What a row needs
beyond hidden states therefore stands in the same tensor, in further rows of width D: a signature, by which a packed
conditioning is told from a long prompt of another tool; where the placeholders stand; how the row takes the concept's
picture. No cell reads these rows.

Legend: B batch, L layer cells, S stages, T token positions, D width, A attributes, H rows of the header.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ATTRIBUTES = 2  # that have a low-rank adapter of their own: shape, appearance
SIGNATURE = (69.0, -83.0, 67.0, -68.0)  # whole numbers, which float16 and bfloat16 hold exactly
MOST_ROWS = 64  # of a header, for a text encoder of three numbers a token
STOCK, BLANK, SHOWN = 0.0, 1.0, 2.0  # how a row takes the picture: the stock U-Net, no picture, the picture


@dataclass
class Marks:
    """Of each row of a conditioning.

    Attributes:
        masks: (B, A, T), 1 at the tokens of each attribute's placeholder.
        picture: (B,), `STOCK`, `BLANK` or `SHOWN`.
    """

    masks: Tensor
    picture: Tensor

    @classmethod
    def none(cls, batch: int, tokens: int) -> "Marks":
        """No placeholder anywhere."""
        return cls(torch.zeros(batch, ATTRIBUTES, tokens), torch.zeros(batch))


def header_rows(tokens: int, width: int) -> int:
    """H."""
    return -(-_count(tokens) // width)


def _count(tokens: int) -> int:
    return len(SIGNATURE) + 2 + 1 + ATTRIBUTES * tokens


def write_header(marks: Marks, layers: int, stages: int, like: Tensor) -> Tensor:
    """(B, H, D) for a conditioning of S x L cells, of the type and place of `like` (..., D)."""
    batch, _, tokens = marks.masks.shape
    kind = torch.tensor([*SIGNATURE, layers, stages]).expand(batch, -1)
    values = torch.cat([kind, marks.picture[:, None].cpu(), marks.masks.flatten(1).cpu()], 1)
    rows, width = header_rows(tokens, like.shape[-1]), like.shape[-1]
    header = torch.zeros(batch, rows * width)
    header[:, : values.shape[1]] = values
    return header.view(batch, rows, width).to(like)


def is_ours(packed: Tensor, layers: int, stages: int, tokens: int) -> bool:
    """Whether a tensor (B, S*L*T + H, D) carries our signature and these numbers of cells."""
    rows = header_rows(tokens, packed.shape[-1])
    if packed.shape[1] != stages * layers * tokens + rows:
        return False
    expected = packed.new_tensor([*SIGNATURE, layers, stages])
    return bool((packed[:, -rows:].flatten(1)[:, : len(expected)] == expected).all())


def split(states: Tensor) -> tuple[Tensor, Tensor | None]:
    """Packed cells (B, S*L*T, D) and the header behind them (B, H, D); states of another kind and None."""
    length, width = states.shape[1:]
    if length < 2 or width < len(SIGNATURE) + 2:
        return states, None
    for rows in range(1, length):
        kind = states[0, -rows].tolist()[: len(SIGNATURE) + 2]
        if tuple(kind[:4]) == SIGNATURE:
            cells = int(kind[4]) * int(kind[5])
            tokens, rest = divmod(length - rows, cells)
            fits = rest == 0 and header_rows(tokens, width) == rows
            return (states[:, :-rows], states[:, -rows:]) if fits else (states, None)
        if rows > MOST_ROWS:
            break
    return states, None


def cells_of(header: Tensor) -> tuple[int, int]:
    """(L, S) that a header (B, H, D) speaks of."""
    layers, stages = header[0, 0, len(SIGNATURE) : len(SIGNATURE) + 2].tolist()
    return int(layers), int(stages)


def read_picture(packed: Tensor, tokens: int) -> Tensor:
    """(B,): `STOCK`, `BLANK` or `SHOWN`."""
    return _values(packed, tokens)[:, len(SIGNATURE) + 2]


def read_masks(packed: Tensor, tokens: int) -> Tensor:
    """(B, A, T)."""
    return _values(packed, tokens)[:, len(SIGNATURE) + 3 :].unflatten(1, (ATTRIBUTES, tokens))


def _values(packed: Tensor, tokens: int) -> Tensor:
    return packed[:, -header_rows(tokens, packed.shape[-1]) :].flatten(1)[:, : _count(tokens)]
