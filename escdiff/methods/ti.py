"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): one word vector for all layers and times (eq. 2).

Space: P, 1 x 1. Paper: 5,000 steps, lr 5e-3 at batch 8 of 3-5 pictures, CLIP's prompt templates, an initial word of
the category, random flips. Ours keeps the vector's norm at the initial word's (`keep_norm`), which the paper does not:
a vector that outgrows the words beside it silences them. One template per step instead of one per sample, so that all
samples share one encoding of the prompt.
"""

import torch
from torch import Tensor, nn

from escdiff.backbone.frozen import Frozen
from escdiff.concept import WHOLE, Concept
from escdiff.methods import losses
from escdiff.methods.base import Method, at_norm

BANDWIDTH = 0.5  # of the density's kernel, in units of a word embedding's mean norm


class TI(Method):
    """A learned table of vectors, by default of one cell.

    Args:
        init: word to start from.
        layers: "tied" or "each". stages: a number, or bounds. See `ConditioningSpace.build`.
        keep_norm: hold every vector at its initial word's norm.

    Attributes:
        attribute: what the placeholder is called.
    """

    attribute = WHOLE

    def __init__(
        self, backbone: Frozen, init: str = "object", vectors: int = 1, templates="auto", keep_norm: bool = True,
        layers: str = "tied", stages=1,
    ) -> None:  # fmt: skip
        space = backbone.space(layers, stages)
        super().__init__(backbone, space, {self.attribute: init}, vectors, templates)
        self.keep_norm = keep_norm
        size = (space.num_layers, space.num_stages)
        self.table = nn.Parameter(self.anchor(self.attribute).expand(*size, -1, -1).clone())  # (L, S, K, D)

    def vectors(self, batch) -> dict[str, Tensor]:
        return {self.attribute: self.normed(self.table[None])}

    def normed(self, vectors: Tensor) -> Tensor:
        """Vectors (..., K, D) at the initial word's norm, if that is kept."""
        return at_norm(vectors, self.anchor(self.attribute)) if self.keep_norm else vectors

    def density(self, vectors: Tensor, bandwidth: float = BANDWIDTH) -> Tensor:
        """Mean negative log density (losses.density) of vectors (..., D) among the vocabulary's."""
        prompts = self.backbone.prompts  # after a fit on a GPU they stay there while the method moves to the CPU
        vocabulary = prompts.embedding_weight.detach().to(vectors.device)
        return losses.density(vectors, vocabulary, bandwidth * prompts.embedding_scale)

    @torch.no_grad()
    def concept(self, notes=None) -> Concept:
        """With `notes["density"]`: that of the vectors, and of the word they started from; U-Nets' alone."""
        if self.backbone.prompts.embedding_weight is None:
            return super().concept(notes)
        own, word = (float(self.density(v)) for v in (self.vectors({})[self.attribute], self.anchor(self.attribute)))
        return super().concept({"density": f"{own:.4g}", "density_of_word": f"{word:.4g}", **(notes or {})})
