"""A source picture rides along: one more row in the U-Net's batch, at the source's own latents and prompt.

So a stock pipeline computes the source's features beside those of the picture it paints, at every step, and hooks can
hand them over. Legend: R rows of the pipeline's batch; the source is row R.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from escdiff.conditioning.grid import pack_stages
from escdiff.conditioning.header import cells_of, split
from escdiff.control.base import Control, Run, Step
from escdiff.control.inversion import Trajectory, check_ddim
from escdiff.support.errors import UserError


class Sourced(Control):
    """A control that begins where its source does.

    Args:
        source: see `invert` and `record`.
    """

    def __init__(self, source: Trajectory) -> None:
        self.source = source

    def check(self, run: Run) -> None:
        """Raises:
        UserError: another scheduler than DDIM.
        """
        check_ddim(run.pipeline)

    def before(self, step: Step, latents: Tensor) -> Tensor:
        """From the source's latents at the first step on."""
        if step.index:
            return latents
        if latents.shape[1:] != self.source.start.shape[1:]:
            sizes = (tuple(x.shape[-2:]) for x in (self.source.start, latents))
            raise UserError(
                "the source picture has {} x {} latents, the pipeline paints {} x {}; "
                "resize the picture, or give its height= and width=".format(*next(sizes), *next(sizes))
            )
        return self.source.at(step.timestep).expand_as(latents)


class Rider(Sourced):
    """Lets the source ride along, and changes nothing by itself.

    Raises:
        UserError: when called, a ControlNet, or a U-Net that reads more than the latents.
    """

    @contextmanager
    def attach(self, run: Run) -> Iterator[None]:
        self.check(run)
        if getattr(run.pipeline, "controlnet", None) is not None:
            raise UserError("a pipeline with a ControlNet was given; its residuals have no row for the source picture")
        channels, own = run.unet.config.in_channels, self.source.clean.shape[1]
        if channels != own:
            raise UserError(
                f"the pipeline's U-Net reads {channels} channels, the source picture {own}; expected a model that "
                "reads the latents alone, not one for inpainting"
            )
        handles = [
            run.unet.register_forward_pre_hook(self._mount, with_kwargs=True, prepend=True),
            run.unet.register_forward_hook(self._dismount),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mount(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        sample, timestep = named.pop("sample"), named.pop("timestep")
        inputs = {name: join(value, self.source.inputs.get(name), len(sample)) for name, value in named.items()}
        return (torch.cat([sample, self.source.at(timestep).to(sample)]), timestep), inputs

    def _dismount(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:-1], *output[1:])
        output.sample = output.sample[:-1]
        return output


def join(value: Any, source: Any, total: int) -> Any:
    """Append the source's row to a U-Net's inputs for `total` rows: tensors, or dicts and lists of them.

    A plain prompt beside packed ones stands in every cell.
    """
    if isinstance(value, Tensor) and value.ndim and len(value) == total:
        source = source.to(value)
        if source.ndim == 3:
            source, value = repeat_states(source, value), repeat_states(value, source)
        return torch.cat([value, source])
    if isinstance(value, list | tuple):
        return type(value)(join(part, source_part, total) for part, source_part in zip(value, source, strict=True))
    if isinstance(value, dict) and isinstance(source, dict):
        return {name: join(part, source.get(name), total) for name, part in value.items()}
    return value


def repeat_states(states: Tensor, target: Tensor) -> Tensor:
    """A plain prompt's states (B, T, D) once per cell where the others are packed; else as they are.

    Raises:
        UserError: lengths that do not go together.
    """
    shorter = states.shape[1]
    if shorter >= target.shape[1]:
        return states
    cells, header = split(target)
    if cells.shape[1] % shorter:
        lengths = f"{shorter} and {target.shape[1]}"
        raise UserError(f"prompts of {lengths} states do not go together; use concepts of one method")
    if header is None:
        return states.repeat(1, cells.shape[1] // shorter, 1)
    return pack_stages(states[:, None, None].expand(-1, *cells_of(header), -1, -1))
