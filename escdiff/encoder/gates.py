"""Gates: how far each layer and stage is open to an attribute, learned, split by hand or all open."""

import torch
from torch import Tensor

from escdiff.concept.mixing import SHAPE_LAYERS


def open_gates(logits: Tensor, gates: str) -> Tensor:
    """(L, S) in 0..1, by `EncoderConfig.gates`."""
    if gates == "none":
        return torch.ones_like(logits)
    return (logits > 2).to(logits) if gates == "hand" else torch.sigmoid(logits)


def initial_logits(attribute: str, layers: int, stages: int) -> Tensor:
    """Open where the literature puts the attribute, half-open elsewhere, so that gradients flow everywhere."""
    middle = [round(i * layers / 16) for i in (SHAPE_LAYERS.start, SHAPE_LAYERS.stop)]
    inside = torch.zeros(layers, dtype=torch.bool)
    inside[middle[0] : middle[1]] = True
    own = inside if attribute == "shape" else ~inside
    return torch.where(own, 3.0, 1.0)[:, None].repeat(1, stages)
