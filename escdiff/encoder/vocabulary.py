"""Words that a tower's CLIP reads off a picture by itself: zero-shot classification (Radford et al. 2021, 3.1).

A head that departs from them starts near the right word even for things that it never saw in training.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escdiff.encoder.vision import embed_texts


class Vocabulary(nn.Module):
    """`texts` (V, P), one per word, scaled for the softmax; `words` (V, K, D), what each adds to the anchor."""

    def __init__(self, size: int, embedding_width: int, tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("texts", torch.zeros(size, embedding_width))
        self.register_buffer("words", torch.zeros(size, tokens, width))

    def set(self, vision: str, words: Sequence[str], templates: Sequence[str], vectors_VKD: Tensor) -> None:
        """Embed every word in every template, averaged over templates as Radford et al. do."""
        texts, scale = embed_texts(vision, [template.format(word) for word in words for template in templates])
        mean = F.normalize(texts.unflatten(0, (len(words), len(templates))).mean(1), dim=-1)
        self.texts.copy_(scale * mean)
        self.words.copy_(vectors_VKD)

    def read(self, embedding_BP: Tensor) -> Tensor:
        """Shares of the words (B, V)."""
        return (embedding_BP @ self.texts.T).softmax(-1)

    def forward(self, shares_BV: Tensor) -> Tensor:
        """The words' mixture (B, K, D)."""
        return torch.einsum("bv,vkd->bkd", shares_BV, self.words)
