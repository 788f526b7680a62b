"""CONFORM: attributes stay with their objects, by contrast between the attention maps of the prompt's groups.

Meral, Simsar, Tombari, Yanardag 2024, "CONFORM: Contrast is All You Need For High-Fidelity Text-to-Image Diffusion
Models". The maps of one group's words ("red", "mug") attract each other, those of different groups repel each other;
the latents follow the gradient of that contrast.
Theirs: 16 x 16 maps of Stable Diffusion, temperature 0.5, updates in the first 30 of 50 steps, each map with the one of
the step before, 20 refinements at steps 0, 10 and 20 without a threshold.
Ours: the same numbers as shares of the steps, the published notebook's choice of no softmax over words.
Not here: their prompts and scores.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from escdiff.control.base import Run, Step
from escdiff.control.descent import MapDescent, Schedule
from escdiff.control.maps import AttentionMaps, choose
from escdiff.control.objectives import contrast, sharpen, smooth
from escdiff.control.phrases import split_phrases
from escdiff.support.errors import UserError

REFINE = {0.0: None, 0.2: None, 0.4: None}


class Conform(MapDescent):
    """Binds the words of each group to each other and keeps the groups apart.

    Args:
        groups: "red mug; blue chair": phrases of the prompt, two or more.
        temperature: of NT-Xent.
        softmax: sharpen the maps over the words first, as Attend-and-Excite does.
        layers: how many times smaller than the latents the maps are; None: what suits the U-Net.

    Raises:
        UserError: fewer than two phrases, or a share of the steps outside of [0, 1]; when called, a phrase that the
            prompt lacks.
    """

    def __init__(
        self, groups: str | Sequence[str], temperature: float = 0.5, softmax: bool = False, layers: int | None = None,
        size: float = 20.0, until: float = 0.6, refine: Mapping[float, float | None] = REFINE, refinements: int = 20,
        null_seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(Schedule(size, until, dict(refine), refinements, null_seed), layers)
        self.groups, self.temperature, self.softmax = split_phrases(groups), temperature, softmax
        if len(self.groups) < 2:
            raise UserError(
                f"the group {self.groups[0]!r} was given alone; expected two or more, as in 'red mug; blue chair', "
                "which are told apart"
            )

    def attach(self, run: Run) -> AbstractContextManager:
        for group in self.groups:
            run.prompts.positions(group)
        return super().attach(run)

    def loss(self, maps: AttentionMaps, step: Step) -> Tensor:
        """(B,), see `objectives.contrast`."""
        positions = [step.run.prompts.positions(group) for group in self.groups]
        labels = [label for label, group in enumerate(positions) for _ in group[0]]
        words = maps.average(step.run.batch)
        together = [[token for group in row for token in group] for row in zip(*positions, strict=True)]
        vectors = smooth(choose(sharpen(words) if self.softmax else words, together)).flatten(2)
        history = step.run.memory.setdefault(self, {})
        history[step.index] = vectors.detach()
        if step.index - 1 in history:
            vectors, labels = torch.cat([vectors, history[step.index - 1]], 1), labels * 2
        return contrast(vectors, labels, self.temperature)
