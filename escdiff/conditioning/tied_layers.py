"""Encoding prompts for all layers at a fraction of the cost: neighbouring layers share a row for one step.

Sixteen layers mean sixteen passes of the text encoder per prompt, forward and backward. The bundled model's
text tower is large for its U-Net: at one timestep per prompt that is two to three times the U-Net's own
forward and backward pass. What stands before the placeholder is encoded once (`conditioning.shared_prefix`), but that
is five of 77 positions; the padding behind the text, which SD attends to, is most of the work. So several
timesteps share a prompt, and most steps cut the layers, in execution order, into a few runs at random and
give each run the mean of its layers' vectors. Every layer's vector gets a gradient at every step, and the
last part of a training uses all cells. Where the U-Net is the large part, as in SD 1.5, encode all cells
throughout.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from escdiff.conditioning import PromptEncoder

ROWS_ON_CPU = 16  # rows of a text encoder's batch that stay in the cache; measured 1.3 times faster than 256
ROWS_AGAIN = 4  # rows that are encoded again at once: the encoder of SD 1.5 keeps 44 MB of each


def random_runs(layers: int, runs: int) -> Tensor:
    """Cut `layers` into `runs` neighbouring runs at random places: the run of each layer, (L,) int64."""
    cuts = torch.randperm(layers - 1)[: runs - 1] + 1
    starts = torch.zeros(layers, dtype=torch.long)
    starts[cuts] = 1
    return starts.cumsum(0)


def tie(vectors: Tensor, run_L: Tensor) -> Tensor:
    """The mean of each run's layers: (B, L, S, K, D) -> (B, runs, S, K, D)."""
    member = torch.nn.functional.one_hot(run_L).to(vectors)  # (L, runs)
    return torch.einsum("blskd,lr->brskd", vectors, member / member.sum(0))


def encode_tied(
    prompts: PromptEncoder, texts: Sequence[str], vectors: Mapping[str, Tensor], runs: int, recompute: bool = False
) -> Tensor:
    """The grid (B, L, T, D) of texts for vectors (B, L, 1, K, D), with at most `runs` different layers.

    `runs` of 0, or of L and more, encodes every layer as it is: exactly the grid of inference.

    Args:
        recompute: keep no activations for the backward pass, which encodes again, a few rows at a time on a CPU.
    """
    layers = next(iter(vectors.values())).shape[1]
    run_L = None
    if 0 < runs < layers:
        run_L = random_runs(layers, runs)
        vectors = {name: tie(value, run_L.to(value.device)) for name, value in vectors.items()}
    device = prompts.embedding_weight.device
    rows = min(runs or layers, layers)
    step, cells = len(texts), rows
    if device.type == "cpu":
        step, cells = max(1, ROWS_ON_CPU // rows), min(rows, ROWS_AGAIN) if recompute else rows

    def part(first: int, cell: int) -> Tensor:
        own = {name: value[first : first + step, cell : cell + cells] for name, value in vectors.items()}
        given = texts[first : first + step], own
        if recompute:
            return checkpoint(prompts.encode, *given, use_reentrant=False)[:, :, 0]
        return prompts.encode(*given)[:, :, 0]

    grid = torch.cat([torch.cat([part(i, c) for c in range(0, rows, cells)], 1) for i in range(0, len(texts), step)])
    return grid if run_L is None else grid[:, run_L.to(device)]
