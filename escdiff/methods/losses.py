"""Training losses as pure functions; each names its equation.

Legend: B batch, C channels, h, w latent height and width, F features, D width, V vocabulary. All return a
scalar tensor.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-4  # under the square root of a variance, whose gradient is infinite at zero (VICReg's value)


def denoising(pred: Tensor, target: Tensor, weight: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the denoiser (arXiv 2006.11239, eq. 14), weighted per sample, within a mask.

    Args:
        pred, target: (B, C, h, w).
        weight: (B) factor of every sample, such as an SNR weight. The mean is over B, not over the weights.
        mask: (B, 1, H, W) in [0, 1] at any resolution, averaged down to the latents' (Break-A-Scene, arXiv
            2305.16311). Each sample's error is divided by its mask's area, so that small objects count alike;
            an empty mask gives zero.
    """
    error_BChw = (pred.float() - target.float()).square()
    if mask is None:
        error_B = error_BChw.flatten(1).mean(1)
    else:
        mask = functional.interpolate(mask.float(), size=error_BChw.shape[-2:], mode="area")
        error_B = (error_BChw.mean(1, keepdim=True) * mask).flatten(1).sum(1)
        error_B = error_B / mask.flatten(1).sum(1).clamp(min=1e-6)
    return (error_B if weight is None else error_B * weight.to(error_B)).mean()


def invariance(a: Tensor, b: Tensor, variance_weight: float = 1.0) -> Tensor:
    """Two views' features should agree and not collapse to a constant (VICReg, arXiv 2105.04906, eqs. 1, 5).

    `mean((a - b)^2) + variance_weight * (hinge(a) + hinge(b)) / 2`, where `hinge(x)` is the mean over
    features of `max(0, 1 - std_B(x))`. Left out for a batch of one, which has no spread.

    Args:
        a, b: (B, F) features before any normalisation.
    """
    a, b = a.float(), b.float()
    agreement = functional.mse_loss(a, b)
    if len(a) < 2:
        return agreement
    hinges = [functional.relu(1 - (x.var(0) + EPSILON).sqrt()).mean() for x in (a, b)]
    return agreement + variance_weight * sum(hinges) / 2


def independence(a: Tensor, b: Tensor) -> Tensor:
    """Two heads' features should not tell of each other: mean squared cross-correlation, in [0, 1].

    `mean_ij(corr_B(a_i, b_j)^2)`, the off-diagonal term of arXiv 2105.04906 (eq. 4) between two feature sets,
    each standardised over the batch so that shrinking the features does not help. Unrelated features score
    about `1 / (B - 1)`, not zero. Zero for a batch of one.

    Args:
        a: (B, F).
        b: (B, G).
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    a, b = ((x.float() - x.float().mean(0)) / (x.float().var(0) + EPSILON).sqrt() for x in (a, b))
    return (a.T @ b / (len(a) - 1)).square().mean()


def identity(vectors: Tensor, instances: Tensor, temperature: float = 0.1) -> Tensor:
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


def residual_l2(residual: Tensor) -> Tensor:
    """Mean square of what is added to an anchor word: keeps a concept near words (E4T, arXiv 2302.12228)."""
    return residual.float().square().mean()


def anchored(vectors: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> Tensor:
    """Mean square distance of word vectors from the words they started from (Zhang et al. 2024, "Compositional
    Inversion", arXiv 2312.08048, semantic part). The paper's mean is over all T positions of the prompt, of which only
    the K of the vectors differ: K / T of this one.

    Args:
        vectors: attribute -> (..., K, D).
        anchors: attribute -> (K, D).
    """
    return torch.stack([(value.float() - anchors[name]).square().mean() for name, value in vectors.items()]).mean()


def steering(word: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """Draws a word to the positives and away from the negatives (ReVersion, arXiv 2303.13495).

    `-log(sum_pos e^(cos / t) / sum_(pos and neg) e^(cos / t))`, cosines of word embeddings; the mean over K.

    Args:
        word: (K, D). positives: (P, D). negatives: (N, D), N may be 0.
    """
    scores = [torch.cosine_similarity(word[:, None], others[None], -1) for others in (positives, negatives)]
    near, all_ = scores[0] / temperature, torch.cat(scores, 1) / temperature
    return (all_.logsumexp(1) - near.logsumexp(1)).mean()


def density(vectors: Tensor, vocabulary: Tensor, bandwidth: float) -> Tensor:
    """Mean negative log of a Gaussian kernel density of the vocabulary, at the vectors (up to a constant).

    `-log mean_V exp(-|x - v|^2 / (2 bandwidth^2))`: low where real words are;
    its gradient pulls towards them.

    Args:
        vectors: (..., D).
        vocabulary: (V, D) word embeddings.
        bandwidth: standard deviation of the kernel, in the embeddings' unit.
    """
    x, words = vectors.float().reshape(-1, vectors.shape[-1]), vocabulary.float()
    squares = x.square().sum(1, keepdim=True) - 2 * x @ words.T + words.square().sum(1)
    kernel = -squares.clamp(min=0) / (2 * bandwidth**2)
    return (math.log(len(words)) - torch.logsumexp(kernel, dim=1)).mean()
