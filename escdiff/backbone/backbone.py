"""The frozen latent-diffusion model: a Stable Diffusion's VAE, text encoders, tokenizers, U-Net, schedule.

Legend: B batch, C latent channels, h, w latent height and width (H, W divided by 8).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from escdiff.backbone.frozen import Frozen
from escdiff.backbone.identify import ARCHITECTURES, Blueprint, cannot_load, hub_options, mini_folder, read_blueprint
from escdiff.backbone.transformer import OPTIONS, load_transformer
from escdiff.backbone.unet_feed import UNetFeed
from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.conditioning.binding import TOKENS
from escdiff.support.config.backbone import DTYPE_NAMES, BackboneConfig
from escdiff.support.errors import UserError

__all__ = ["Backbone", "Blueprint", "load_backbone", "loading_options", "mini_folder", "read_blueprint"]

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2")
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(eq=False)
class Backbone(Frozen):
    """A Stable Diffusion.

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
    def denoiser(self) -> UNet2DConditionModel:
        """The U-Net."""
        return self.unet

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

    def free_text(self) -> None:
        """Let go of the text encoders' weights, once all prompts are encoded; no other can be encoded then."""
        for part in (self.text_encoder, self.text_encoder_2):
            for parameter in () if part is None else part.parameters():
                parameter.data = parameter.data.new_empty(0)  # not "meta", which diffusers would take for the device

    def feed(self, space: ConditioningSpace, words: Mapping[str, str], anchors: Mapping[str, Tensor]) -> UNetFeed:
        """See `Frozen.feed`; words and anchors are among the vectors already."""
        return UNetFeed(self.unet, space, self.prompts)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Tensor, **added) -> Tensor:
        """The U-Net's output (B, C, h, w). `conditioning` is (B, T, D), or packed (B, L*T, D) while bound.

        `added` goes to the U-Net as it is, such as the `added_cond_kwargs` of an image adapter. SDXL's U-Net is told
        the size and, as in the part of its own training without a prompt, pooled states of zero. Trained weights in a
        half-precision U-Net are float32 and computed in the U-Net's type, by autocast.
        """
        noisy, conditioning = (x.to(self.device, self.dtype) for x in (noisy, conditioning))
        if self.is_xl:
            height, width = (side * self.vae_factor for side in noisy.shape[-2:])
            known = {
                "text_embeds": noisy.new_zeros(len(noisy), self.text_encoder_2.config.projection_dim),
                "time_ids": noisy.new_tensor([[height, width, 0, 0, height, width]]).repeat(len(noisy), 1),
            }
            added["added_cond_kwargs"] = known | (added.get("added_cond_kwargs") or {})
        half = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype) if half else nullcontext():
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


def load_backbone(
    name: str | Path | Blueprint = "mini", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    trust_pickle: bool = False, prediction_type: str | None = None, unet_dtype: torch.dtype | None = None,
    **options: Any,
) -> Frozen:  # fmt: skip
    """Load a Stable Diffusion 1.x, 2.x or XL, or a transformer that has a family.

    Args:
        name: "mini" (the bundled model), a diffusers folder, a single `.safetensors` file, a hub id, or what
            `read_blueprint` found under one of these.
        trust_pickle: also read pickled weights, which can run code.
        unet_dtype: of the U-Net alone, the largest part, which is then never read in another; without, `dtype`.
        prediction_type: "epsilon", "v_prediction" or "sample" if the checkpoint's scheduler names the wrong one.
        options: passed to the diffusers loader, such as `revision`, `variant`, `cache_dir`, `local_files_only`,
            `device_map` (then `device` is not used); for a single file also `config`, see `read_blueprint`; for a
            transformer also `offload_text`, `quantize`, `splice_words` and `text_cache`, see `load_transformer`.

    Raises:
        UserError: nothing loadable under this name, pickled weights without `trust_pickle`,
            another kind of model, or what only transformers have.
    """
    config = options.pop("config", None)
    plan = name if isinstance(name, Blueprint) else read_blueprint(name, trust_pickle, config, **hub_options(options))
    if plan.family.reading is not None:
        where = None if options.get("device_map") else device
        options["use_safetensors"] = not trust_pickle or None
        return load_transformer(plan, unet_dtype or dtype, where, **options)
    own = {key: options.pop(key, None) for key in OPTIONS}
    if given := [f"{key}={value}".lower() for key, value in own.items() if value]:
        raise UserError(f"{given[0]} given for the backbone {plan.name!r}, a U-Net; only transformers take it")
    kind = StableDiffusionXLPipeline if plan.is_xl else StableDiffusionPipeline
    try:
        if plan.config is not None:
            options = options | _tokenizers(plan)
            pipeline = kind.from_single_file(plan.source, config=plan.config, **options)
        else:
            # The text encoders' words are compared with a concept's, so they are read unrounded and cast later.
            dtypes = {"text_encoder": torch.float32, "text_encoder_2": torch.float32, "default": dtype}
            dtypes["unet"] = unet_dtype or dtype
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
    device = None if options.get("device_map") else device
    backbone = Backbone(**parts, name=plan.name)
    if unet_dtype is None:
        return backbone.to(device, dtype)
    for part in backbone.modules():
        torch.nn.Module.to(part, device=device, dtype=unet_dtype if part is backbone.unet else dtype)
    return backbone


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


def pick_dtype(name: str, key: str = "backbone.dtype") -> torch.dtype:
    """A torch dtype by its name in `DTYPES`; `key` is named in the error.

    Raises:
        UserError: none of those.
    """
    if name not in DTYPES:
        raise UserError(f"{key}={name} given; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def blueprint_of(settings: BackboneConfig) -> Blueprint:
    """What a configuration's `backbone` block names, see `read_blueprint`."""
    names, options = ("trust_pickle", "config", "revision", "local_files_only"), loading_options(settings)
    return read_blueprint(settings.name, **{name: options[name] for name in names if name in options})


def loading_options(settings: BackboneConfig) -> dict[str, Any]:
    """Options of `load_backbone` in a configuration's `backbone` block, its dtype apart."""
    names = ("variant", "revision", "config", "prediction_type", "device_map", "trust_pickle", *OPTIONS)
    options = {name: value for name in names if (value := getattr(settings, name))}
    return options | ({"local_files_only": True} if settings.offline else {})


def _tokenizers(plan: Blueprint) -> dict[str, CLIPTokenizer]:
    """For the bundled configurations, CLIP's vocabulary from the bundled model, whose prompts are shorter than theirs.

    Each kind has its padding.
    """
    if Path(plan.config).parent != ARCHITECTURES:
        return {}
    read = partial(CLIPTokenizer.from_pretrained, mini_folder() / "tokenizer", model_max_length=TOKENS)
    found = {"tokenizer": read(pad_token="!" if plan.width == 1024 else "<|endoftext|>")}
    if plan.is_xl:
        found["tokenizer_2"] = read(pad_token="!")
    return found
