"""What trainings and commands ask of a frozen model, whatever its family.

Legend: B batch, C latent channels, h, w latent height and width, L layers, S stages, K vectors per placeholder,
W width of the vectors.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from escdiff.backbone.family import Family, Noise, family_of
from escdiff.backbone.vae import decoded, factor_of, moments_of
from escdiff.concept import TEXT_ENCODER
from escdiff.conditioning import ConditioningSpace


class Feed(Protocol):
    """Hands the frozen denoiser of a training the text of its layers."""

    def load(
        self, texts: Sequence[str], vectors: Mapping[str, Tensor], stage_B: Tensor, repeats: int = 1, *how: Any,
        **named: Any,
    ) -> Any:  # fmt: skip
        """What `Frozen.predict` takes as conditioning, until the next `load` or `clear`.

        Args:
            texts: B prompts.
            vectors: "<name>" -> (B|1, L|1, S|1, K, W).
            stage_B: stage of every prompt.
            repeats: samples per prompt.
            how, named: of the U-Net's feed, see there.
        """

    def clear(self) -> None:
        """Let go of the texts: the denoiser is the stock one until the next `load`."""

    def remove(self) -> None:
        """Take everything out of the denoiser."""


class Frozen(ABC):
    """A frozen latent-diffusion model in evaluation mode.

    Not an `nn.Module` on purpose: a LightningModule that held one would copy and store its weights.

    Attributes:
        name: as it was given.
        prompts: its tokenizers and text encoders as one.
        entry: where learned vectors enter, see `escdiff.concept.Concept`.
    """

    name: str
    vae: nn.Module
    scheduler: SchedulerMixin
    prompts: Any
    entry: str = TEXT_ENCODER

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The U-Net or the transformer."""

    @property
    @abstractmethod
    def width(self) -> int:
        """W."""

    @property
    @abstractmethod
    def text_hash(self) -> str:
        """Tells text encoders apart."""

    @abstractmethod
    def modules(self) -> list[nn.Module]:
        """Denoiser, VAE and text encoders."""

    @abstractmethod
    def feed(self, space: ConditioningSpace, words: Mapping[str, str], anchors: Mapping[str, Tensor]) -> Feed:
        """For trainings; remove it afterwards.

        Args:
            words: attribute -> ordinary words that the vectors depart from.
            anchors: attribute -> (K, W), vectors of these words; a transformer is given the difference from them.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Any, **added) -> Tensor:
        """What the denoiser says (B, C, h, w) of noised latents (B, C, h, w) at timesteps (B) of 0-999.

        Args:
            conditioning: see `Feed.load`.
        """

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """The stock pipeline over the same modules."""

    @cached_property
    def family(self) -> Family:
        """What its layers are and what it learns."""
        return family_of(self.denoiser)

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the denoiser computes in."""
        return self.denoiser.dtype

    @property
    def vae_factor(self) -> int:
        """Pixels per latent along a side."""
        return factor_of(self.vae)

    @property
    def picture_size(self) -> int:
        """Pixels per side that it was made for."""
        return self.denoiser.config.sample_size * self.vae_factor

    @property
    def side_step(self) -> int:
        """Pixels of which a picture's sides are multiples."""
        return self.vae_factor * self.family.latents.step

    @cached_property
    def noise(self) -> Noise:
        """The noise of its training, whatever sampler the checkpoint names."""
        return self.family.noise(self.scheduler)

    def with_part(self, name: str, part: Any) -> "Frozen":
        """One of the same modules but for this part; unlike a new one it freezes none of them."""
        other = copy.copy(self)
        vars(other).pop("noise", None)  # of the scheduler
        setattr(other, name, part)
        return other

    def space(self, layers: str = "each", stages: int | Sequence[int] = 1) -> ConditioningSpace:
        """A space over its layers, see `ConditioningSpace.partition`."""
        return ConditioningSpace.partition(self.family.cells(self.denoiser), layers, stages)

    def p_plus(self) -> ConditioningSpace:
        """A cell per layer (arXiv 2303.09522), one stage."""
        return self.space()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Frozen":
        """Move and cast all parts in place; returns itself."""
        _ = self.text_hash  # taken before a cast would change it
        for part in self.modules():
            nn.Module.to(part, device=device, dtype=dtype)  # without the advice that diffusers adds
        return self

    def moments(self, pixels: Tensor) -> Tensor:
        """See `escdiff.backbone.vae.moments_of`."""
        return moments_of(self.vae, pixels)

    def sample_latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, h, w) latents drawn from their moments, scaled for the denoiser."""
        return self.family.latents.normalize(self.vae, DiagonalGaussianDistribution(moments).sample(generator))

    def mean_latents(self, moments: Tensor) -> Tensor:
        """(B, C, h, w) the mean of latents' moments, scaled for the denoiser."""
        return self.family.latents.normalize(self.vae, DiagonalGaussianDistribution(moments).mode())

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1] of scaled latents."""
        return decoded(self.vae, self.family.latents.restore(self.vae, latents.to(self.vae.device, self.vae.dtype)))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised latents at timesteps (B) of 0-999, see `escdiff.backbone.family.noise`."""
        return self.noise.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict of them."""
        return self.noise.target(latents, noise, timesteps)

    def clean(self, output: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The latents that the denoiser's output stands for, at noised latents of timesteps (B)."""
        return self.noise.clean(output, noisy, timesteps)
