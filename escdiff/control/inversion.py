"""The way that a picture took from noise: painted by a pipeline, or found for a real picture by DDIM inversion.

Song, Meng, Ermon 2021, "Denoising Diffusion Implicit Models", section 4.3: without random noise in its steps the
sampler is an ordinary differential equation, which runs backwards too. Legend: C latent channels, h, w their sides.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DiffusionPipeline
from PIL import Image
from torch import Tensor

from escdiff.control.base import Control, Step, controlled
from escdiff.control.whitening import Whitening
from escdiff.support.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A source picture on its way from noise.

    Attributes:
        latents: timestep -> (1, C, h, w), what the U-Net reads there, from the most noise to the least.
        clean: (1, C, h, w) of the picture itself.
        inputs: what else the U-Net reads, one row each: the states of `prompt` and, of SDXL, the sizes.
        prompt: what the source shows, in words.
    """

    latents: Mapping[int, Tensor]
    clean: Tensor
    inputs: Mapping[str, Any]
    prompt: str

    @property
    def start(self) -> Tensor:
        """(1, C, h, w) with the most noise."""
        return next(iter(self.latents.values()))

    @property
    def steps(self) -> int:
        return len(self.latents)

    def at(self, timestep: Tensor | int) -> Tensor:
        """(1, C, h, w) at a timestep.

        Raises:
            UserError: the source's steps have no such one.
        """
        latents = self.latents.get(int(timestep))
        if latents is None:
            raise UserError(
                f"the source picture was taken in {self.steps} steps, none of them at timestep {int(timestep)}; "
                f"paint with num_inference_steps={self.steps} and the same DDIM scheduler"
            )
        return latents


class Recorder(Control):
    """Keeps what the U-Net reads at every step, of a call with one picture."""

    def __init__(self) -> None:
        self.latents: dict[int, Tensor] = {}
        self.clean: Tensor | None = None
        self.inputs: dict[str, Any] = {}

    def before(self, step: Step, latents: Tensor) -> Tensor:
        self.latents[int(step.timestep)] = latents
        # The last row is the prompt's, with guidance and without.
        self.inputs = step.inputs_of(slice(step.rows - 1, step.rows))
        return latents

    def after(self, step: Step, latents: Tensor) -> Tensor:
        self.clean = latents
        return latents


def check_ddim(pipeline: DiffusionPipeline) -> None:
    """Raises:
    UserError: another scheduler, whose steps cannot be run backwards.
    """
    if not isinstance(pipeline.scheduler, DDIMScheduler):
        raise UserError(
            f"the pipeline has a {type(pipeline.scheduler).__name__}; editing expects DDIM: "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )


def record(pipeline: DiffusionPipeline, prompt: str, **options: Any) -> Trajectory:
    """Paint one picture with a stock pipeline and keep its way.

    Args:
        options: of the pipeline's call, such as `num_inference_steps`, `guidance_scale`, `generator`, `latents`.

    Raises:
        UserError: another scheduler than DDIM.
    """
    check_ddim(pipeline)
    recorder = Recorder()
    controlled(pipeline, recorder)(prompt, **options | {"output_type": "latent"})
    return Trajectory(recorder.latents, recorder.clean, recorder.inputs, prompt)


@torch.no_grad()
def invert(
    pipeline: DiffusionPipeline, picture: Image.Image | Tensor, prompt: str, steps: int = 25, rounds: int = 4,
    whitening: Whitening | None = None,
) -> Trajectory:  # fmt: skip
    """The way of a real picture, by DDIM inversion without guidance.

    A step back should ask the U-Net at the noisier latents, which are not known yet; the first round asks at the
    cleaner ones, as DDIM inversion does, and each further round at the result of the last one, until that is a fixed
    point
    (Pan et al. 2023, "Effective Real Image Editing with Accelerated Iterative Diffusion Inversion"). How near the way
    back comes to the picture, see `fidelity`, also depends on the words: say what the picture shows.

    Args:
        picture: PIL, or (1, 3, H, W) in [0, 1]; sides of multiples of 8 pixels, as large as the pipeline paints.
        prompt: what it shows; placeholders of loaded concepts are fine.
        steps: those that the edited picture is painted with.
        rounds: passes of the U-Net per step; 1 is plain DDIM inversion; even numbers do better than odd ones.
        whitening: of the noise that each pass predicts, as in pix2pix-zero; costs fidelity.

    Raises:
        UserError: another scheduler than DDIM, a picture whose sides are no multiples, no steps or rounds.
    """
    check_ddim(pipeline)
    if steps < 1 or rounds < 1:
        raise UserError(f"steps={steps} and rounds={rounds} were given; expected 1 or more of each")
    if not prompt.strip():
        log.warning(
            "an empty prompt inverts badly (24 dB on the bundled model, 33 with the caption); say what is shown"
        )
    clean = encode(pipeline, picture)
    height, width = (side * pipeline.vae_scale_factor for side in clean.shape[-2:])
    recorder = Recorder()  # one step, to learn what the pipeline tells the U-Net
    controlled(pipeline, recorder)(
        prompt, latents=torch.randn_like(clean), width=width, height=height, num_inference_steps=1,
        guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    # Runs from the least noise to the most, by the same coefficients.
    inverse = DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    inverse.set_timesteps(steps, device=clean.device)
    latents, way = clean, {}
    generator = torch.Generator().manual_seed(whitening.seed) if whitening else None

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        output = pipeline.unet(latents, timestep, **recorder.inputs)[0]
        if whitening is None:
            return output
        return whitening.apply(output, partial(noise_of, inverse, timestep, latents), generator)

    for timestep in inverse.timesteps:
        # Plain DDIM inversion: the noise at the cleaner latents stands for that at the noisier ones.
        cleaner, latents = latents, inverse.step(predict(latents, timestep), timestep, latents).prev_sample
        for _ in range(rounds - 1):
            latents = _solve(inverse, timestep, cleaner, latents, predict(latents, timestep))
        way[int(timestep)] = latents
    # Painting goes the other way: from the most noise to the least.
    return Trajectory(dict(reversed(way.items())), clean, recorder.inputs, prompt)


def noise_of(scheduler: Any, timestep: Tensor, latents: Tensor, output: Tensor) -> Tensor:
    """(B, C, h, w): the noise that the U-Net's output stands for, at latents of this timestep.

    With a and b the roots of alpha_bar and 1 - alpha_bar, latents are a x_0 + b noise, and v = a noise - b x_0
    (Salimans and Ho 2022, appendix D).
    """
    # alpha_bar: the share of the picture's variance that is left.
    bar, kind = scheduler.alphas_cumprod[int(timestep)].item(), scheduler.config.prediction_type
    if kind == "epsilon":
        return output
    if kind == "sample":
        return (latents - bar**0.5 * output) / (1 - bar) ** 0.5
    return bar**0.5 * output + (1 - bar) ** 0.5 * latents


def _solve(inverse: DDIMInverseScheduler, timestep: Tensor, cleaner: Tensor, noisier: Tensor, output: Tensor) -> Tensor:
    """The latents that a step of DDIM takes to `cleaner`, if the U-Net's output at `noisier` is theirs.

    DDIM's step is x_s = a_s x_0 + b_s noise with x_0 = a_t x_t - b_t v and noise = a_t v + b_t x_t, which is solved for
    x_t; a and b are the roots of alpha_bar and of 1 - alpha_bar. It also holds where the last a_t is zero.
    """
    # The last step ends before timestep 0, where DDIM takes a value of its own.
    earlier = int(timestep) - inverse.config.num_train_timesteps // inverse.num_inference_steps
    bars = (inverse.alphas_cumprod[earlier] if earlier >= 0 else inverse.initial_alpha_cumprod,
            inverse.alphas_cumprod[int(timestep)])  # fmt: skip
    # Python numbers, so that half precision does not round the coefficients.
    (a_s, b_s), (a_t, b_t) = (((bar**0.5).item(), ((1 - bar) ** 0.5).item()) for bar in bars)
    kind = inverse.config.prediction_type
    if kind == "epsilon":
        output = (output - b_t * noisier) / a_t
    elif kind == "sample":
        output = (a_t * noisier - output) / b_t
    return (cleaner - output * (b_s * a_t - a_s * b_t)) / (a_s * a_t + b_s * b_t)


@torch.no_grad()
def repaint(pipeline: DiffusionPipeline, source: Trajectory) -> Tensor:
    """(1, C, h, w): where the way from the source's noise ends, with its own words and without guidance."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(source.steps, device=source.start.device)
    latents = source.start
    for timestep in scheduler.timesteps:
        output = pipeline.unet(latents, timestep, **source.inputs)[0]
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents


@torch.no_grad()
def fidelity(pipeline: DiffusionPipeline, source: Trajectory) -> float:
    """PSNR in dB of the source's picture painted again, against what the VAE makes of it."""
    # Both through the VAE: what it loses is no fault of the inversion.
    pixels = [decode(pipeline, latents) for latents in (source.clean, repaint(pipeline, source))]
    return psnr(*pixels)


@torch.no_grad()
def encode(pipeline: DiffusionPipeline, picture: Image.Image | Tensor) -> Tensor:
    """(1, C, h, w) latents of a picture, PIL or (1, 3, H, W) in [0, 1]: their mode.

    Raises:
        UserError: sides that are no multiples of the VAE's factor.
    """
    factor = pipeline.vae_scale_factor
    size = picture.size if isinstance(picture, Image.Image) else tuple(picture.shape[:-3:-1])
    if any(side % factor for side in size):
        raise UserError(
            f"a picture of {size[0]} x {size[1]} pixels was given; expected multiples of {factor}: resize it"
        )
    vae = pipeline.vae
    pixels = pipeline.image_processor.preprocess(picture).to(vae.device, vae.dtype)
    # The VAEs of Stable Diffusion 3 and later also shift latents; older ones have no such entry.
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    # The mode, since a draw would add noise that no inverted step takes out.
    return (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor


def decode(pipeline: DiffusionPipeline, latents: Tensor) -> Tensor:
    """(B, 3, H, W) pixels in [0, 1]."""
    vae = pipeline.vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (vae.decode(latents / vae.config.scaling_factor + shift).sample / 2 + 0.5).clamp(0, 1)


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1].

    Args:
        mask: (1, 1, H, W), 1 where they are compared.
    """
    error = (a.float() - b.float()).square()
    # By the mask's own area, so that a small part is measured as strictly as a large one.
    mean = error.mean() if mask is None else (error * mask).sum() / mask.expand_as(error).sum()
    return float(-10 * torch.log10(mean))
