"""The word loss: an attribute's vectors should start out near the words that name it (cf. MATTE's anchor).

A caption's words are the one target known without the diffusion model, so a first part of a training can do
without it at a fraction of the cost; the denoising loss then moves the vectors to what the words cannot say.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from escdiff.conditioning import PromptEncoder


class WordTargets:
    """Words to target vectors, each phrase looked up once."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self.prompts, self._known = prompts, {}

    def __call__(self, phrases: Sequence[str], count: int) -> tuple[Tensor, Tensor]:
        """Phrases, "" where there is none -> targets (B, K, D) and which of them count, bool (B,)."""
        device = self.prompts.embedding_weight.device
        missing = torch.zeros(count, self.prompts.width, device=device)
        targets = torch.stack([self._look_up(phrase, count) if phrase else missing for phrase in phrases])
        return targets, torch.tensor([bool(phrase) for phrase in phrases], device=device)

    def _look_up(self, phrase: str, count: int) -> Tensor:
        if (phrase, count) not in self._known:
            self._known[phrase, count] = self.prompts.spread(phrase, count)
        return self._known[phrase, count]


def word_loss(vectors: Tensor, targets: Tensor, counted: Tensor, scale: Tensor) -> Tensor:
    """Mean squared distance of (B, L, S, K, D) from targets (B, K, D), in units of `scale`."""
    error = (vectors - targets[:, None, None]).square().sum(-1).mean((1, 2, 3)) / scale.square()
    return (error * counted).sum() / counted.sum().clamp_min(1)
