"""What a family's model learns to predict: DDPM's noise, velocity or latents, or the velocity of flow matching.

Legend: B batch, the latents' further axes as the family has them; timesteps (B) from 0, no noise, to 1000.
"""

from typing import Protocol

from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from escdiff.conditioning.space import TRAIN_TIMESTEPS


class Noise(Protocol):
    """How latents are noised and what a model should say of them."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noised latents."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict of them."""

    def clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The latents that the model's output stands for, at noised latents; the inverse of `target`."""


class Diffusion:
    """DDPM (arXiv 2006.11239, eq. 4): epsilon, v (arXiv 2202.00512) or x0, as the scheduler's configuration says."""

    def __init__(self, scheduler: SchedulerMixin) -> None:
        self.schedule = DDPMScheduler.from_config(scheduler.config)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        kind = self.schedule.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents

    def clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        kind, bar = self.schedule.config.prediction_type, self.schedule.alphas_cumprod.to(output)
        bar = bar[timesteps.to(output.device)].view(-1, *[1] * (noisy.ndim - 1))
        if kind == "v_prediction":
            return bar.sqrt() * noisy - (1 - bar).sqrt() * output
        return (noisy - (1 - bar).sqrt() * output) / bar.sqrt() if kind == "epsilon" else output


class FlowMatching:
    """Straight paths (arXiv 2209.03003): x_t = (1 - s) x_0 + s noise with s = t / 1000; the target is noise - x_0.

    A scheduler's shift moves the timesteps that are drawn or walked, never this relation.
    """

    def __init__(self, scheduler: SchedulerMixin | None = None) -> None:
        self.steps = scheduler.config.num_train_timesteps if scheduler is not None else TRAIN_TIMESTEPS

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigma = self._sigma(latents, timesteps)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return noisy - self._sigma(noisy, timesteps) * output

    def _sigma(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        return (timesteps.to(latents) / self.steps).view(-1, *[1] * (latents.ndim - 1))
