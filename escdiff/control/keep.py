"""Everything outside of a mask stays the source's, at every step (Avrahami, Lischinski, Fried 2022, "Blended Diffusion
for Text-driven Editing of Natural Images").
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image, ImageFilter
from torch import Tensor

from escdiff.control.base import Run, Step
from escdiff.control.inversion import Trajectory, check_ddim, encode
from escdiff.control.rider import Sourced
from escdiff.support.errors import UserError


class Keep(Sourced):
    """Paints inside of a mask only.

    Args:
        mask: (1, H, W) of the picture's size, 1 where it may change.

    Raises:
        UserError: an empty mask, or one of another shape.
    """

    def __init__(self, source: Trajectory, mask: Tensor) -> None:
        super().__init__(source)
        if mask.ndim != 3 or len(mask) != 1 or not mask.any():
            raise UserError(
                f"a mask of shape {tuple(mask.shape)} was given; expected (1, height, width), 1 on an object"
            )
        height, width = source.clean.shape[-2:]
        if mask.shape[1] * width != mask.shape[2] * height:
            raise UserError(
                f"the mask has {mask.shape[2]} x {mask.shape[1]} pixels, which is not the shape of the source's "
                f"{width} x {height} latents: give a mask of the picture"
            )
        # A latent pixel may change if any of its pixels may.
        self.mask = F.adaptive_max_pool2d(mask[None].float(), (height, width))

    def attach(self, run: Run) -> AbstractContextManager:
        self.check(run)
        return nullcontext()

    def after(self, step: Step, latents: Tensor) -> Tensor:
        timesteps = step.run.pipeline.scheduler.timesteps.tolist()
        # By its value: image to image begins in the middle of the scheduler's timesteps.
        later = timesteps[timesteps.index(int(step.timestep)) + 1 :]
        source = self.source.at(later[0]) if later else self.source.clean
        mask = self.mask.to(latents)
        return latents * mask + source.to(latents) * (1 - mask)


def renoised(pipeline: DiffusionPipeline, picture: Image.Image, steps: int, seed: int = 0) -> Trajectory:
    """A source for `Keep` alone: the picture's latents, with one noise at every step. No inversion, no words.

    Raises:
        UserError: another scheduler than DDIM, a picture whose sides are no multiples of the VAE's factor.
    """
    check_ddim(pipeline)
    clean = encode(pipeline, picture)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    way = {int(t): scheduler.add_noise(clean, noise, t[None]) for t in scheduler.timesteps}
    return Trajectory(way, clean, {}, "")


def paste(result: Image.Image, picture: Image.Image, mask: Tensor, rim: float = 1.0) -> Image.Image:
    """The result inside of the mask, the picture's own pixels elsewhere.

    A latent stands for 8 x 8 pixels, so what was painted reaches beyond a mask, and the VAE loses a little everywhere.

    Args:
        mask: (1, H, W) of the pictures' size.
        rim: pixels over which one passes into the other.
    """
    soft = Image.fromarray((mask[0] * 255).byte().numpy()).filter(ImageFilter.GaussianBlur(rim))
    return Image.composite(result, picture, soft)
