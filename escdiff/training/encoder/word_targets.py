"""The word loss: an attribute's vectors should start out near the words that name it (cf. MATTE's anchor).

A caption's words are the one target known without the diffusion model, so a first part of a training can do
without it at a fraction of the cost; the denoising loss then moves the vectors to what the words cannot say.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.prompt import spread

Phrase = str | Sequence[Mapping[str, float]]  # words, or for each place of a phrase the shares of its words


class WordTargets:
    """Words to target vectors, each looked up once; put together on the CPU, and moved once a batch."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self.prompts, self._known = prompts, {}

    def __call__(self, phrases: Sequence[Phrase], count: int) -> tuple[Tensor, Tensor]:
        """Phrases, empty where there is none -> targets (B, K, D) and which of them count, bool (B,)."""
        device = self.prompts.embedding_weight.device
        missing = torch.zeros(count, self.prompts.width)
        targets = torch.stack([self._target(phrase, count) if phrase else missing for phrase in phrases])
        return targets.to(device), torch.tensor([bool(phrase) for phrase in phrases], device=device)

    def _target(self, phrase: Phrase, count: int) -> Tensor:
        return self._look_up(phrase, count) if isinstance(phrase, str) else spread(self._mix(phrase), count)

    def _mix(self, phrase: Sequence[Mapping[str, float]]) -> Tensor:
        """Vectors (N, D) of a phrase's places; a word of several tokens has them over the places it stands in."""
        mixed = torch.zeros(len(phrase), self.prompts.width)
        for first, place in enumerate(phrase):
            for word in place:
                if first and word in phrase[first - 1]:
                    continue
                run = list(takewhile(lambda place, word=word: word in place, phrase[first:]))
                shares = torch.tensor([place[word] for place in run])
                mixed[first : first + len(run)] += shares[:, None] * self._look_up(word, len(run))
        return mixed

    def _look_up(self, phrase: str, count: int) -> Tensor:
        if (phrase, count) not in self._known:
            self._known[phrase, count] = self.prompts.spread(phrase, count).cpu()
        return self._known[phrase, count]


def word_loss(vectors: Tensor, targets: Tensor, counted: Tensor, scale: Tensor) -> Tensor:
    """Mean squared distance of (B, L, S, K, D) from targets (B, K, D), in units of `scale`."""
    error = (vectors - targets[:, None, None]).square().sum(-1).mean((1, 2, 3)) / scale.square()
    return (error * counted).sum() / counted.sum().clamp_min(1)
