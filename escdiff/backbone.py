"""The frozen latent-diffusion model: a Stable Diffusion's VAE, text encoders, tokenizers, U-Net, schedule.

Legend: B batch, C latent channels, h, w latent height and width (H, W divided by 8).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from escdiff.blueprint import ARCHITECTURES, Blueprint, cannot_load, mini_folder, read_blueprint
from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.errors import UserError

__all__ = ["Backbone", "Blueprint", "load_backbone", "loading_options", "mini_folder", "read_blueprint"]

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class Backbone:
    """A Stable Diffusion, frozen and in evaluation mode.

    Not an `nn.Module` on purpose: a LightningModule that held one would copy and store its weights.

    Raises:
        UserError: the parts do not make a text-to-image Stable Diffusion 1.x, 2.x or XL.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    name: str
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None

    def __post_init__(self) -> None:
        config, width, channels = self.unet.config, self.width, self.vae.config.latent_channels
        if config.addition_embed_type != ("text_time" if self.is_xl else None):
            count = 1 + self.is_xl
            problem = f"its U-Net expects {config.addition_embed_type!r} embeddings (SDXL), and text encoders: {count}"
        elif config.in_channels != channels:
            problem = f"its U-Net reads {config.in_channels} channels, its VAE has {channels}"
        elif config.cross_attention_dim != width:
            problem = f"its U-Net attends to width {config.cross_attention_dim}, its text encoder has {width}"
        else:
            problem = None
        if problem:
            raise UserError(
                f"the backbone {self.name!r} cannot be used: {problem}; "
                "give a text-to-image Stable Diffusion 1.x, 2.x or XL checkpoint"
            )
        for part in self.modules():
            part.requires_grad_(False).eval()

    def modules(self) -> list[torch.nn.Module]:
        """U-Net, VAE and text encoders."""
        parts = (self.unet, self.vae, self.text_encoder, self.text_encoder_2)
        return [part for part in parts if part is not None]

    @property
    def is_xl(self) -> bool:
        """Whether it is an SDXL, with two text encoders."""
        return self.text_encoder_2 is not None

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def width(self) -> int:
        """D, width of the text encoders together."""
        return sum(part.config.hidden_size for part in (self.text_encoder, self.text_encoder_2) if part is not None)

    @cached_property
    def prompts(self) -> PromptEncoder:
        """Tokenizers and text encoders as one."""
        return PromptEncoder(self.tokenizer, self.text_encoder, self.tokenizer_2, self.text_encoder_2)

    @cached_property
    def text_hash(self) -> str:
        """`PromptEncoder.fingerprint` of the weights as they were read."""
        return self.prompts.fingerprint()

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The training schedule (DDPM, arXiv 2006.11239), whatever sampler the checkpoint names."""
        return DDPMScheduler.from_config(self.scheduler.config)

    def p_plus(self) -> ConditioningSpace:
        """A cell per cross-attention layer of the U-Net (arXiv 2303.09522), one stage."""
        return ConditioningSpace.p_plus(self.unet)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Move and cast all parts in place; returns itself."""
        _ = self.text_hash  # taken before a cast to bfloat16 would change it
        for part in self.modules():
            torch.nn.Module.to(part, device=device, dtype=dtype)  # without the advice that diffusers adds
        return self

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """(B, 2C, h, w) mean and log-variance of the latents of pixels (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: not three channels, or a side that is no multiple of the VAE's factor.
        """
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise UserError(
                f"pixels of shape {tuple(pixels.shape)} were given, expected (batch, 3, height, width) "
                f"with sides that are multiples of {factor}: resize the image"
            )
        return self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.parameters

    def sample_latents(self, moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, h, w) latents drawn from their moments, scaled for the U-Net."""
        latents = DiagonalGaussianDistribution(moments).sample(generator)
        return (latents - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1] of scaled latents."""
        latents = latents.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(latents).sample.clamp(-1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise; timesteps (B) in 0-999 (arXiv 2006.11239, eq. 4)."""
        return self.noise_schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the U-Net should predict: the noise, the velocity (arXiv 2202.00512) or the latents."""
        kind = self.noise_schedule.config.prediction_type
        if kind == "v_prediction":
            return self.noise_schedule.get_velocity(latents, noise, timesteps)
        return noise if kind == "epsilon" else latents

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensor, **added) -> Tensor:
        """The U-Net's output (B, C, h, w). `conditioning` is (B, T, D), or packed (B, L*T, D) while bound.

        `added` goes to the U-Net as it is, such as the `added_cond_kwargs` of an image adapter. SDXL's U-Net is told
        the size and, as in the part of its own training without a prompt, pooled states of zero.
        """
        noisy, conditioning = (x.to(self.device, self.dtype) for x in (noisy, conditioning))
        if self.is_xl:
            height, width = (side * 2 ** (len(self.vae.config.block_out_channels) - 1) for side in noisy.shape[-2:])
            known = {
                "text_embeds": noisy.new_zeros(len(noisy), self.text_encoder_2.config.projection_dim),
                "time_ids": noisy.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(noisy), 1),
            }
            added["added_cond_kwargs"] = known | (added.get("added_cond_kwargs") or {})
        return self.unet(noisy, timesteps.to(self.device), encoder_hidden_states=conditioning, **added).sample

    def pipeline(self) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """The stock pipeline over the same modules, with a scheduler of its own and no safety checker."""
        parts = {part: getattr(self, part) for part in PARTS if getattr(self, part) is not None}
        parts["scheduler"] = type(self.scheduler).from_config(self.scheduler.config)
        if self.is_xl:
            return StableDiffusionXLPipeline(**parts, add_watermarker=False)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


def load_backbone(
    name: str | Path | Blueprint = "mini", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    trust_pickle: bool = False, prediction_type: str | None = None, **options: Any,
) -> Backbone:  # fmt: skip
    """Load a Stable Diffusion 1.x, 2.x or XL.

    Args:
        name: "mini" (the bundled model), a diffusers folder, a single `.safetensors` file, a hub id, or what
            `read_blueprint` found under one of these.
        trust_pickle: also read pickled weights, which can run code.
        prediction_type: "epsilon", "v_prediction" or "sample" if the checkpoint's scheduler names the wrong one.
        options: passed to the diffusers loader, such as `revision`, `variant`, `cache_dir`, `local_files_only`,
            `device_map` (then `device` is not used); for a single file also `config`, see `read_blueprint`.

    Raises:
        UserError: nothing loadable under this name, pickled weights without `trust_pickle`,
            another kind of model.
    """
    hub = {key: options[key] for key in ("revision", "cache_dir", "token", "local_files_only") if key in options}
    config = options.pop("config", None)
    plan = name if isinstance(name, Blueprint) else read_blueprint(name, trust_pickle, config, **hub)
    kind = StableDiffusionXLPipeline if plan.is_xl else StableDiffusionPipeline
    try:
        if plan.config is not None:
            options = options | _tokenizers(plan)
            pipeline = kind.from_single_file(plan.source, config=plan.config, **options)
        else:
            # The text encoders' words are compared with a concept's, so they are read unrounded and cast later.
            dtypes = {"text_encoder": torch.float32, "text_encoder_2": torch.float32, "default": dtype}
            unsafe = {} if plan.is_xl else {"safety_checker": None, "feature_extractor": None}
            pipeline = kind.from_pretrained(
                plan.source, use_safetensors=None if trust_pickle else True, dtype=dtypes, **unsafe, **options
            )
        parts = {key: pipeline.components[key] for key in PARTS if key in pipeline.components}
    except Exception as error:  # the loaders of three libraries raise what they like
        raise cannot_load(plan.name, error) from error
    if prediction_type:
        scheduler = parts["scheduler"]
        parts["scheduler"] = type(scheduler).from_config(scheduler.config, prediction_type=prediction_type)
    return Backbone(**parts, name=plan.name).to(None if options.get("device_map") else device, dtype)


def pick_device(name: str) -> str:
    """A torch device for "auto" or a name.

    Raises:
        UserError: it is not there.
    """
    there = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return there[1] if len(there) > 1 else "cpu"
    if name.split(":")[0] not in there:
        raise UserError(f"device={name} given; expected auto or one of {', '.join(there)} on this machine")
    return name


def pick_dtype(name: str) -> torch.dtype:
    """A torch dtype by its name in `DTYPES`.

    Raises:
        UserError: none of those.
    """
    if name not in DTYPES:
        raise UserError(f"backbone.dtype={name} given; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def loading_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load_backbone` in a configuration's `backbone` block (`configs/loading.yaml`), its dtype apart.

    Raises:
        UserError: an unknown prediction type.
    """
    kinds = ("epsilon", "v_prediction", "sample")
    if (kind := settings.get("prediction_type")) not in (None, *kinds):
        raise UserError(f"backbone.prediction_type={kind} given; expected one of {', '.join(kinds)}")
    names = ("variant", "revision", "config", "prediction_type", "device_map", "trust_pickle")
    options = {name: settings[name] for name in names if settings.get(name)}
    return options | ({"local_files_only": True} if settings.get("offline") else {})


def _tokenizers(plan: Blueprint) -> dict[str, CLIPTokenizer]:
    """For the bundled configurations, CLIP's vocabulary from the bundled model; each kind has its padding."""
    if Path(plan.config).parent != ARCHITECTURES:
        return {}
    clip, end = mini_folder() / "tokenizer", "<|endoftext|>"
    found = {"tokenizer": CLIPTokenizer.from_pretrained(clip, pad_token="!" if plan.width == 1024 else end)}
    if plan.is_xl:
        found["tokenizer_2"] = CLIPTokenizer.from_pretrained(clip, pad_token="!")
    return found
