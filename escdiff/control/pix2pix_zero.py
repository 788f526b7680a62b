"""pix2pix-zero: a direction is added to the prompt while the attention maps stay those of the source.

Parmar, Singh, Zhang, Li, Lu, Zhu 2023, "Zero-shot Image-to-Image Translation". Before each step the latents take one
step of descent towards the source's cross-attention maps, and the prompt's states are moved by the mean difference
between sentences about the target and about the source.
Theirs: the maps of every layer, step 0.1 for a real picture, guidance 5 with the source's words as negative prompt,
some 1,000 sentences per side written by a language model.
Ours: the maps of the source are computed from its way when they are needed, not stored; the direction may come from a
concept: the states of "<appearance> mug" less those of "red mug" put a reference's material onto the picture.
Their inversion, whose noise is kept like noise: `invert(..., rounds=1, whitening=Whitening())`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from escdiff.conditioning import cross_attention_layers
from escdiff.conditioning.header import split
from escdiff.control.base import Run, Step
from escdiff.control.descent import value_and_gradient
from escdiff.control.inversion import Trajectory
from escdiff.control.maps import AttentionMaps
from escdiff.control.objectives import like
from escdiff.control.rider import Sourced, repeat_states
from escdiff.support.errors import UserError

UPDATES = ("both", "half")


class Pix2PixZero(Sourced):
    """Moves the prompt along a direction and holds on to the source's layout.

    Paint with the source's own prompt, and guidance with it as negative prompt too if you like.

    Args:
        direction: (1, T, D) added to the prompt's states, see `direction_between`; packed ones too.
        amount: step of the descent on the maps; 0 lets the layout go. At 0.1 for Stable Diffusion 1.x, at most 0.01 for
            2.x; the loss is a sum over pixels, so it does not carry over from one resolution to another.
        update: "both" moves the latents by the gradient of both halves of guidance; "half" is the published code, which
            keeps the unconditional half's update alone and lets the two halves differ while the U-Net predicts.

    Raises:
        UserError: a negative amount, an unknown update; when called, a pipeline that the source does not go with.
    """

    def __init__(self, source: Trajectory, direction: Tensor, amount: float = 0.1, update: str = "both") -> None:
        super().__init__(source)
        if amount < 0:
            raise UserError(f"amount={amount} was given; expected 0 or more")
        if update not in UPDATES:
            raise UserError(f"update={update!r} was given; expected one of {', '.join(UPDATES)}")
        self.direction, self.amount, self.update = direction, amount, update

    def attach(self, run: Run) -> AbstractContextManager:
        self.check(run)
        return nullcontext()

    def before(self, step: Step, latents: Tensor) -> Tensor:
        latents, batch = super().before(step, latents), step.run.batch
        source = self.source.at(step.timestep).expand_as(latents)
        halves = step.rows // batch
        states = step.inputs["encoder_hidden_states"]
        source_states = repeat_states(self.source.inputs["encoder_hidden_states"].to(states), states)
        unconditional, conditional = states[:-batch], states[-batch:]
        layers = cross_attention_layers(step.run.unet)
        with AttentionMaps(step.run.unet, layers) as maps:
            if self.amount:
                step.inputs["encoder_hidden_states"] = torch.cat([unconditional, source_states.expand_as(conditional)])
                step.predict_rows(source.repeat(halves, 1, 1, 1))
                reference = {name: maps.layer(name, step.rows) for name in layers}
            # A new tensor: the step goes on with the moved prompt.
            step.inputs["encoder_hidden_states"] = self._moved(unconditional, conditional)

            def loss(rows: Tensor) -> Tensor:
                step.predict_rows(rows)
                return sum(like(maps.layer(name, step.rows), reference[name]) for name in layers) / halves

            if not self.amount:
                return latents
            rows = latents.repeat(halves, 1, 1, 1)
            gradient = value_and_gradient(loss, rows)[1]
        if self.update == "half":
            return rows - self.amount * gradient
        return latents - self.amount * gradient.unflatten(0, (halves, batch)).sum(0)

    def _moved(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The states of all rows, the prompts' moved along the direction."""
        direction = self.direction.to(conditional)
        unconditional, conditional = (repeat_states(x, direction) for x in (unconditional, conditional))
        cells, header = split(conditional)
        moved = cells + split(repeat_states(direction, conditional))[0]
        return torch.cat([unconditional, moved if header is None else torch.cat([moved, header], 1)])


@torch.no_grad()
def direction_between(pipeline: DiffusionPipeline, source: Sequence[str], target: Sequence[str]) -> Tensor:
    """(1, T, D): the mean states of sentences about the target less those of sentences about the source.

    Placeholders of loaded concepts are fine, and make it packed (1, S*L*T + H, D), see `conditioning.grid.pack_stages`.

    Raises:
        UserError: no sentence on one side.
    """
    if not source or not target or isinstance(source, str) or isinstance(target, str):
        raise UserError(f"the sentences {source!r} and {target!r} were given; expected a list of each")
    encode = partial(
        pipeline.encode_prompt, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    means = []
    for sentences in (target, source):
        states = [encode(text)[0] for text in sentences]
        longest = max(states, key=lambda x: x.shape[1])
        means.append(torch.cat([repeat_states(x, longest) for x in states]).mean(0, keepdim=True))
    longest = max(means, key=lambda x: x.shape[1])
    cells, header = split(repeat_states(means[0], longest))
    way = cells - split(repeat_states(means[1], longest))[0]
    return way if header is None else torch.cat([way, header], 1)
