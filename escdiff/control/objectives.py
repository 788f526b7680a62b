"""Losses of cross-attention maps, one number per sample. Pure functions of tensors.

Legend: B batch, K maps (words or objects), h, w pixels of a map, P all of them, T token position, N vectors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 100.0  # Attend-and-Excite's factor before its softmax over words
SMALL = 1e-8


def sharpen(maps_BhwT: Tensor) -> Tensor:
    """softmax(100 A) over the words, without the first and the last position (Chefer et al. 2023, section 4).

    Returns:
        (B, h, w, T), zero at those two positions.
    """
    # Attention is a share of 77 tokens; without the factor a softmax of such small numbers is nearly even.
    return F.pad((maps_BhwT[..., 1:-1] * SHARPNESS).softmax(-1), (1, 1))


def smooth(maps_BKhw: Tensor) -> Tensor:
    """A 3 x 3 Gaussian of sigma 0.5, mirrored at the rim.

    The published code of Attend-and-Excite, hence everybody's, has exp(-(d / 2 sigma)^2) for exp(-d^2 / 2 sigma^2).
    """
    line = torch.tensor([-1.0, 0.0, 1.0], device=maps_BKhw.device, dtype=maps_BKhw.dtype)
    line = torch.exp(-((line / (2 * 0.5)) ** 2))
    kernel = torch.outer(line, line)
    kernel = (kernel / kernel.sum()).expand(maps_BKhw.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps_BKhw, (1, 1, 1, 1), mode="reflect"), kernel, groups=maps_BKhw.shape[1])


def excite(maps_BKhw: Tensor) -> Tensor:
    """(B,): 1 - the largest value of the weakest map (Chefer et al. 2023, "Attend-and-Excite", equation 1)."""
    # The weakest word alone decides: what is there already needs no push.
    return (1 - maps_BKhw.flatten(2).amax(-1)).amax(-1)


def contrast(vectors_BNP: Tensor, labels: list[int], temperature: float = 0.5) -> Tensor:
    """(B,) NT-Xent: vectors of one label near to each other, apart from the others' (Meral et al. 2024, "CONFORM").

    The mean over all ordered pairs i, j of one label of -log(e^(s_ij/T) / (e^(s_ij/T) + sum over k of another label of
    e^(s_ik/T))), s the cosine. Without such a pair it is zero.
    """
    label_N = torch.tensor(labels, device=vectors_BNP.device)
    same = label_N[:, None] == label_N[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)
    vectors = F.normalize(vectors_BNP, dim=-1)
    scores = vectors @ vectors.transpose(1, 2) / temperature
    if not positive.any():
        # Zero, but of the graph, so that its gradient exists.
        return scores.flatten(1).sum(1) * 0
    # In logarithms: e^(s/T) of a small temperature overflows float16.
    negatives = scores.masked_fill(same, -torch.inf).logsumexp(-1, keepdim=True)
    return (torch.logaddexp(scores, negatives) - scores)[:, positive].mean(-1)


def inside(maps_BKhw: Tensor, masks: Tensor) -> Tensor:
    """(B,): mean over maps of (1 - share of the map inside of its mask)^2 (Zhang et al. 2024, "Compositional
    Inversion", spatial part).

    Args:
        masks: (K, h, w), or (B, K, h, w).
    """
    # A share, so that a map cannot win by becoming weak everywhere.
    share = (maps_BKhw * masks).flatten(2).sum(-1) / (maps_BKhw.flatten(2).sum(-1) + SMALL)
    return (1 - share).square().mean(-1)


def like(probs_BHPT: Tensor, reference_BHPT: Tensor) -> Tensor:
    """(B,): squares of the difference, summed over pixels and words, mean over heads (Parmar et al. 2023,
    "pix2pix-zero")."""
    return (probs_BHPT - reference_BHPT).square().sum((2, 3)).mean(1)


def follow(maps_BKhw: Tensor, masks_BKhw: Tensor) -> Tensor:
    """(B,): mean square of (map / its largest value - mask) (Avrahami et al. 2023, "Break-A-Scene", attention loss)."""
    # By its largest value: maps of different layers have different heights.
    largest = maps_BKhw.flatten(2).amax(-1)[..., None, None]
    return (maps_BKhw / (largest + SMALL) - masks_BKhw).square().flatten(1).mean(-1)


def localise(maps_BKhw: Tensor, masks_BKhw: Tensor) -> Tensor:
    """(B,): the mean of a map off its object less the mean on it, mean over maps (Xiao et al. 2023, "FastComposer",
    balanced L1). A map without an object, or without anything beside it, has a mean of zero there."""
    on, off = masks_BKhw.flatten(2), 1 - masks_BKhw.flatten(2)
    maps = maps_BKhw.flatten(2)
    on, off = ((maps * part).sum(-1) / part.sum(-1).clamp_min(SMALL) for part in (on, off))
    return (off - on).mean(-1)
