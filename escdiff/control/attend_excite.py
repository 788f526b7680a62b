"""Attend-and-Excite: every subject of the prompt gets attention somewhere in the picture.

Chefer, Alaluf, Vinker, Wolf, Cohen-Or 2023, "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
Diffusion Models". When a picture leaves a subject out, its word's map is weak everywhere; the latents are moved until
the weakest of the maps has a strong place.
Theirs: the 16 x 16 maps of Stable Diffusion, the first half of 50 steps, refinement at steps 0, 10 and 20.
Ours: the same numbers as shares of the steps; a phrase of several tokens counts by the mean of its maps.
Not here: their explainability measures.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from escdiff.control.base import Run, Step
from escdiff.control.descent import MapDescent, Schedule
from escdiff.control.maps import AttentionMaps, choose
from escdiff.control.objectives import excite, sharpen, smooth
from escdiff.control.phrases import split_phrases

REFINE = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}


class AttendExcite(MapDescent):
    """Every phrase of the prompt gets its place.

    Args:
        subjects: "mug; chair", or a list.
        layers: how many times smaller than the latents the maps are; None: what suits the U-Net.

    Raises:
        UserError: no phrase, or a share of the steps outside of [0, 1]; when called, a phrase that the prompt lacks.
    """

    def __init__(
        self, subjects: str | Sequence[str], layers: int | None = None, size: float = 20.0, until: float = 0.5,
        refine: Mapping[float, float | None] = REFINE, refinements: int = 20, null_seed: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(Schedule(size, until, dict(refine), refinements, null_seed), layers)
        self.subjects = split_phrases(subjects)

    def attach(self, run: Run) -> AbstractContextManager:
        for subject in self.subjects:
            run.prompts.positions(subject)
        return super().attach(run)

    def loss(self, maps: AttentionMaps, step: Step) -> Tensor:
        """(B,), see `objectives.excite`."""
        words = sharpen(maps.average(step.run.batch))
        chosen = [choose(words, step.run.prompts.positions(subject)).mean(1) for subject in self.subjects]
        return excite(smooth(torch.stack(chosen, 1)))
