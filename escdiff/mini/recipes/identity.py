"""Telling instances apart: the contrast that trains the judge's embeddings and the vision tower's features."""

import torch
from torch import Tensor

TEMPERATURE = 0.1


def identity_loss(vectors: Tensor, instances: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, eq. 2): pictures of one instance attract, all others repel.

    Args:
        vectors: (B, D) of length 1.
        instances: (B,) numbers; pictures with -1 are left out.

    Returns:
        The mean over pictures that have another of their instance; 0 where there are none.
    """
    vectors, instances = vectors[instances >= 0].float(), instances[instances >= 0]
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    with torch.autocast(vectors.device.type, enabled=False):  # angles of hard negatives are small
        likeness = vectors @ vectors.T
    logits = (likeness / temperature).masked_fill(itself, float("-inf"))
    positive = (instances[:, None] == instances[None]) & ~itself
    log_shares = logits.log_softmax(-1).masked_fill(~positive, 0.0)
    paired = positive.any(-1)
    if not paired.any():
        return vectors.sum() * 0
    return -(log_shares.sum(-1)[paired] / positive.sum(-1)[paired]).mean()
