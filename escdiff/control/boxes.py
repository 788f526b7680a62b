"""A box for each phrase or concept: the spatial part of Compositional Inversion, without training.

Zhang, Chen, Wei et al. 2024, "Compositional Inversion for Stable Diffusion Models", section on spatial inversion.
The latents are moved until the attention of each phrase lies within its box.
Theirs: maps of 8 x 8 and 16 x 16 pixels in the mid and first upward blocks, the first 10 of 50 steps, up to 5 updates a
step while the loss times 30 is above 0.2, steps of sigma^2 with a scheduler in sigmas.
Ours: the maps of one factor, and sigma^2 in the units that the U-Net reads, where it is 1 - alpha_bar, so that any
scheduler will do; the mean over a phrase's tokens.
Not here: the semantic part, which is a regulariser of training.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from escdiff.control.base import Control, Run, Step
from escdiff.control.descent import value_and_gradient
from escdiff.control.maps import AttentionMaps, choose
from escdiff.control.objectives import inside
from escdiff.support.errors import UserError

Box = tuple[float, float, float, float]


class Boxes(Control):
    """Places each phrase of the prompt in its box.

    Args:
        boxes: phrase -> (left, top, right, bottom) as shares of the picture, or "mug=.1,.2,.5,.8; chair=.5,.2,.9,.8".
        weight: of the loss; 0 is the stock picture.
        until: share of the steps in which latents are moved.
        enough: weighted loss that makes more updates of a step needless.
        tries: most updates per step.
        layers: how many times smaller than the latents the maps are; None: what suits the U-Net.

    Raises:
        UserError: no box, or one that is no part of the picture; when called, a phrase that the prompt lacks.
    """

    def __init__(
        self, boxes: Mapping[str, Box] | str, weight: float = 30.0, until: float = 0.2, enough: float = 0.2,
        tries: int = 5, layers: int | None = None,
    ) -> None:  # fmt: skip
        self.boxes = {phrase: check_box(phrase, box) for phrase, box in parse_boxes(boxes).items()}
        if not self.boxes:
            raise UserError("no box was given; expected boxes such as 'mug=.1,.2,.5,.8; chair=.5,.2,.9,.8'")
        if not 0 <= until <= 1:
            raise UserError(f"until={until} was given; expected a share of the steps in [0, 1]")
        self.weight, self.until, self.enough, self.tries, self.layers = weight, until, enough, tries, layers

    def attach(self, run: Run) -> AbstractContextManager:
        for phrase in self.boxes:
            run.prompts.positions(phrase)
        return AttentionMaps(run.unet, self.layers)  # which says if there is no such layer

    def before(self, step: Step, latents: Tensor) -> Tensor:
        if not self.weight or step.index >= round(self.until * step.total):
            return latents
        size = 1 - float(step.run.pipeline.scheduler.alphas_cumprod[int(step.timestep)])
        with AttentionMaps(step.run.unet, self.layers) as maps:

            def loss(latents: Tensor) -> Tensor:
                step.predict(latents)
                return self.weight * self.loss(maps.average(step.run.batch), step)

            for _ in range(self.tries):
                value_B, gradient = value_and_gradient(loss, latents)
                active_B = (value_B > self.enough).to(latents)
                if not active_B.any():
                    break
                latents = latents - size * active_B[:, None, None, None] * gradient
        return latents

    def loss(self, words_BhwT: Tensor, step: Step) -> Tensor:
        """(B,), see `objectives.inside`."""
        chosen = [choose(words_BhwT, step.run.prompts.positions(phrase)).mean(1) for phrase in self.boxes]
        masks = torch.stack([draw(box, *words_BhwT.shape[1:3]) for box in self.boxes.values()])
        return inside(torch.stack(chosen, 1), masks.to(words_BhwT))


def parse_boxes(boxes: Mapping[str, Box] | str) -> dict[str, Box]:
    """ "mug=.1,.2,.5,.8; chair=.5,.2,.9,.8" -> phrase -> four numbers.

    Raises:
        UserError: it cannot be read.
    """
    if not isinstance(boxes, str):
        return dict(boxes)
    parsed = {}
    for part in filter(str.strip, boxes.split(";")):
        phrase, _, numbers = part.rpartition("=")
        try:
            parsed[phrase.strip()] = tuple(float(number) for number in numbers.split(","))
        except ValueError:
            phrase = ""
        if not phrase.strip():
            raise UserError(f"the box {part.strip()!r} was given; expected PHRASE=left,top,right,bottom")
    return parsed


def check_box(phrase: str, box: Box) -> Box:
    """Raises:
    UserError: not four numbers with 0 <= left < right <= 1 and 0 <= top < bottom <= 1.
    """
    good = len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    if not good:
        raise UserError(
            f"the box {tuple(box)} was given for {phrase!r}; expected (left, top, right, bottom) inside of the "
            "picture, as shares of its sides from 0 to 1"
        )
    return tuple(box)


def draw(box: Box, height: int, width: int) -> Tensor:
    """(height, width) mask, 1 inside of the box, at least one pixel."""
    mask = torch.zeros(height, width)
    left, top, right, bottom = (round(x * side) for x, side in zip(box, (width, height) * 2, strict=True))
    left, top = min(left, width - 1), min(top, height - 1)
    mask[top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return mask
