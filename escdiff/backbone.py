"""The frozen latent-diffusion model: a Stable Diffusion's VAE, text encoder, tokenizer, U-Net, schedule.

Legend: B batch, C latent channels, h, w latent height and width (H, W divided by 8).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.errors import UserError

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin"}


def mini_folder() -> Path:
    """Where the bundled model lives (it may not have been trained yet)."""
    return Path(__file__).parent / "assets" / "mini"


@dataclass(eq=False)
class Backbone:
    """A Stable Diffusion, frozen and in evaluation mode.

    Not an `nn.Module` on purpose: a LightningModule that held one would copy and store its weights.

    Raises:
        UserError: the parts do not make a text-to-image Stable Diffusion 1.x or 2.x.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    name: str

    def __post_init__(self) -> None:
        config, width, channels = self.unet.config, self.width, self.vae.config.latent_channels
        if config.addition_embed_type is not None:
            problem = f"its U-Net expects {config.addition_embed_type!r} embeddings (SDXL)"
        elif config.in_channels != channels:
            problem = f"its U-Net reads {config.in_channels} channels, its VAE has {channels}"
        elif config.cross_attention_dim != width:
            problem = f"its U-Net attends to width {config.cross_attention_dim}, its text encoder has {width}"
        else:
            problem = None
        if problem:
            raise UserError(
                f"the backbone {self.name!r} cannot be used: {problem}; "
                "give a text-to-image Stable Diffusion 1.x or 2.x checkpoint"
            )
        for part in (self.unet, self.vae, self.text_encoder):
            part.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def width(self) -> int:
        """D, width of the text encoder."""
        return self.text_encoder.config.hidden_size

    @cached_property
    def prompts(self) -> PromptEncoder:
        return PromptEncoder(self.tokenizer, self.text_encoder)

    @cached_property
    def text_hash(self) -> str:
        """Twelve hexadecimal digits of the word embeddings, equal for a model's float32 and float16 files."""
        weight = self.prompts.embedding_weight.detach().to("cpu", torch.float16).contiguous()
        return hashlib.sha256(weight.view(torch.uint8).numpy()).hexdigest()[:12]

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The training schedule (DDPM, arXiv 2006.11239), whatever sampler the checkpoint names."""
        return DDPMScheduler.from_config(self.scheduler.config)

    def p_plus(self) -> ConditioningSpace:
        return ConditioningSpace.p_plus(self.unet)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Move and cast all parts in place; returns itself."""
        _ = self.text_hash  # taken before a cast to bfloat16 would change it
        for part in (self.unet, self.vae, self.text_encoder):
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

        `added` goes to the U-Net as it is, such as the `added_cond_kwargs` of an image adapter.
        """
        noisy, conditioning = (x.to(self.device, self.dtype) for x in (noisy, conditioning))
        return self.unet(noisy, timesteps.to(self.device), encoder_hidden_states=conditioning, **added).sample

    def pipeline(self) -> StableDiffusionPipeline:
        """The stock pipeline over the same modules, with a scheduler of its own and no safety checker."""
        return StableDiffusionPipeline(
            vae=self.vae, text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet,
            scheduler=type(self.scheduler).from_config(self.scheduler.config),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


def load_backbone(
    name: str | Path = "mini", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    trust_pickle: bool = False, **options,
) -> Backbone:  # fmt: skip
    """Load a Stable Diffusion 1.x or 2.x.

    Args:
        name: "mini" (the bundled model), a diffusers folder, a single `.safetensors` file, or a hub id.
        trust_pickle: also read pickled weights, which can run code.
        options: passed to the diffusers loader, such as `revision`, `cache_dir`, `local_files_only`; for a
            single file also `config`, a diffusers folder with the model's configuration.

    Raises:
        UserError: nothing loadable under this name, pickled weights without `trust_pickle`,
            another kind of model.
    """
    source = _resolve(str(name), trust_pickle)
    options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        if Path(source).is_file():
            pipeline = StableDiffusionPipeline.from_single_file(source, **options)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                source, use_safetensors=None if trust_pickle else True, **options
            )
        parts = {key: pipeline.components[key] for key in PARTS}
    except Exception as error:  # the loaders of three libraries raise what they like
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the backbone {str(name)!r} could not be loaded ({type(error).__name__}: {reason}); expected "
            "'mini', a diffusers folder of a Stable Diffusion 1.x or 2.x with safetensors weights, one "
            ".safetensors file of it, or its hub id: check the name and the connection"
        ) from error
    return Backbone(**parts, name=str(name)).to(device, dtype)


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


def _resolve(name: str, trust_pickle: bool) -> str:
    """The folder, file or hub id that a backbone's name means."""
    if name == "mini":
        if not (mini_folder() / "model_index.json").is_file():
            raise UserError(
                f"the bundled model 'mini' is not at {mini_folder()}: train it with "
                "`python train.py experiment=mini/clip`, then mini/vae and mini/unet, or name another one"
            )
        return str(mini_folder())
    path = Path(name).expanduser()
    if path.suffix in PICKLE_SUFFIXES and not trust_pickle:
        raise UserError(
            f"the backbone {name!r} is a pickle, which can run code when it is read; expected .safetensors: "
            "convert it, or set trust_pickle=true if you trust its author"
        )
    looks_like_path = name.startswith((".", "/", "~")) or path.suffix in {".safetensors", *PICKLE_SUFFIXES}
    if looks_like_path and not path.exists():
        raise UserError(f"there is no backbone at {name!r}: give an existing folder or .safetensors file")
    return str(path) if path.exists() else name
