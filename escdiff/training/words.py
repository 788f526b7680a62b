"""The word loss: an attribute's vectors should start out near the words that name it (cf. MATTE's anchor).

A caption's words are the one target known without the diffusion model, so a first part of a training can do
without it at a fraction of the cost; the denoising loss then moves the vectors to what the words cannot say.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from escdiff.concept import placeholder, token_masks
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


class StateTargets:
    """What words change in the text encoder's hidden states where they stand, for residuals that are added there."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self.prompts, self._words = prompts, WordTargets(prompts)

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[str], phrases: Mapping[str, Sequence[str]], anchors: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Attribute -> targets (B, K, D) and which of them count, bool (B,), each attribute named on its own.

        A residual knows its own attribute only, hence the others keep their anchor words. A text without the
        attribute's placeholder does not count.

        Args:
            phrases: attribute -> words for each of B texts, "" where there are none.
            anchors: attribute -> (K, D), the words that the residuals depart from.
        """
        neutral = {placeholder(a): anchor[None, None, None] for a, anchor in anchors.items()}
        masks = token_masks(self.prompts, texts, {placeholder(a): len(anchor) for a, anchor in anchors.items()})
        before, result = self.prompts.encode(texts, neutral)[:, 0, 0], {}
        for attribute, anchor in anchors.items():
            words, counted = self._words(phrases[attribute], len(anchor))
            named = neutral | {placeholder(attribute): words[:, None, None]}
            change = self.prompts.encode(texts, named)[:, 0, 0] - before  # (B, T, D)
            mask = masks[attribute].bool().to(change.device)
            counted = counted & (mask.sum(1) == len(anchor))
            targets = torch.zeros_like(words)
            targets[counted] = change[mask & counted[:, None]].view(-1, *anchor.shape).to(words)
            result[attribute] = targets, counted
        return result


def word_loss(vectors: Tensor, targets: Tensor, counted: Tensor, scale: Tensor) -> Tensor:
    """Mean squared distance of (B, L, S, K, D) from targets (B, K, D), in units of `scale`."""
    error = (vectors - targets[:, None, None]).square().sum(-1).mean((1, 2, 3)) / scale.square()
    return (error * counted).sum() / counted.sum().clamp_min(1)
