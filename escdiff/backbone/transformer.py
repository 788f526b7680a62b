"""A frozen transformer that paints: any family whose stock pipeline says how it reads prompts."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family import FAMILIES
from escdiff.backbone.family.stored import hash_text, phrase, text_encoders
from escdiff.backbone.frozen import Frozen
from escdiff.backbone.identify import Blueprint, cannot_load, hub_options
from escdiff.backbone.quantized import quantization
from escdiff.backbone.transformer_prompts import TransformerPrompts
from escdiff.concept import LAYERS, TEXT_ENCODER, placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

OPTIONS = ("offload_text", "quantize", "splice_words", "text_cache")  # of `load_transformer`; a U-Net takes none


class TransformerBackbone(Frozen):
    """PixArt, Sana, SD 3, FLUX.1 or Qwen-Image, as its stock pipeline.

    Args:
        stock: its parts are frozen.
        offload_text: keep the text encoders where they are, usually the CPU, when the rest is moved.
        splice_words: learned vectors are words inside the text encoder, see `escdiff.backbone.family.splicing`.
        text_cache: folder in which texts are kept, see `escdiff.backbone.text_cache`.

    Raises:
        UserError: splice_words, of a family whose text encoders take no learned words.
    """

    def __init__(
        self, stock: DiffusionPipeline, name: str, offload_text: bool = False, splice_words: bool = False,
        text_cache: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.stock, self.name, self.offload_text, self.text_cache = stock, name, offload_text, text_cache
        self.entry = TEXT_ENCODER if splice_words else LAYERS
        self.vae, self.scheduler = stock.vae, stock.scheduler
        if splice_words and not self.family.splices:
            known = ", ".join(one.name for one in FAMILIES.values() if one.splices)
            what = f"backbone.splice_words=true given for {name!r} of the family {self.family.name!r}"
            raise UserError(f"{what}, whose text is a stream; expected one of {known}: leave it out")
        for part in self.modules():
            part.requires_grad_(False).eval()

    @property
    def denoiser(self) -> nn.Module:
        return self.stock.transformer

    @property
    def unet(self) -> nn.Module:
        """None here.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"a U-Net is needed, but the backbone {self.name!r} is a transformer of the family {self.family.name!r}; "
            "expected a Stable Diffusion 1.x, 2.x or XL, or what transformers have: ti, xti, escdiff, escdiff_tuned"
        )

    @property
    def width(self) -> int:
        return self.prompts.width

    @property
    def picture_size(self) -> int:
        side = getattr(self.stock, "default_sample_size", None) or self.denoiser.config.sample_size
        return side * self.vae_factor

    @cached_property
    def prompts(self) -> TransformerPrompts:
        return TransformerPrompts(self.stock, self.family, self.entry == TEXT_ENCODER, self.text_cache)

    @cached_property
    def text_hash(self) -> str:
        return hash_text(text_encoders(self.stock))

    def modules(self) -> list[nn.Module]:
        return [self.denoiser, self.vae, *text_encoders(self.stock)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TransformerBackbone":
        stay = text_encoders(self.stock) if self.offload_text else []
        for part in self.modules():
            nn.Module.to(part, device=None if part in stay else device, dtype=dtype)
        self.prompts.forget()
        return self

    def feed(self, space: ConditioningSpace, words: Mapping[str, str], anchors: Mapping[str, Tensor]) -> "ResidualFeed":
        return ResidualFeed(self, space, words, anchors)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], **added) -> Tensor:
        if added:
            raise UserError(f"{', '.join(added)} given; a transformer takes no image adapter: use a U-Net")
        noisy = noisy.to(self.device, self.dtype)
        return self.family.predict(self.denoiser, noisy, timesteps.to(self.device), conditioning)

    def pipeline(self) -> DiffusionPipeline:
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        return type(self.stock)(**self.stock.components | {"scheduler": scheduler})


class ResidualFeed:
    """See `escdiff.backbone.frozen.Feed`; the texts are packed, so nothing stays in the model but its hooks."""

    def __init__(
        self, backbone: TransformerBackbone, space: ConditioningSpace, words: Mapping[str, str],
        anchors: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.prompts, self.words = backbone.prompts, {placeholder(a): word for a, word in words.items()}
        self.anchors = {placeholder(a): anchor for a, anchor in anchors.items()}
        self.space = backbone.space(stages=space.stage_bounds)
        self.binding = backbone.family.attach(backbone.denoiser, self.space)

    def load(
        self, texts: Sequence[str], vectors: Mapping[str, Tensor], stage_B: Tensor, repeats: int = 1, *how: Any,
        **named: Any,
    ) -> dict[str, Tensor]:  # fmt: skip
        """See `Feed.load`; a sample's timestep chooses its stage."""
        words = {name: phrase(self.words[name], value.shape[3]) for name, value in vectors.items()}
        residuals = {name: value - self.anchors[name].to(value) for name, value in vectors.items()}
        found = self.prompts.condition(texts, residuals, words, self.space)
        return {name: value.repeat_interleave(repeats, 0) for name, value in found.items()}

    def clear(self) -> None:
        """Nothing to let go of."""

    def remove(self) -> None:
        """See `Feed.remove`."""
        self.binding.remove()


def load_transformer(
    plan: Blueprint, dtype: torch.dtype, device: torch.device | str | None, offload_text: bool = False,
    quantize: str | None = None, splice_words: bool = False, text_cache: str | None = None, **options: Any,
) -> TransformerBackbone:  # fmt: skip
    """Load a transformer's stock pipeline; see `escdiff.backbone.load_backbone`.

    Args:
        device: None leaves the parts where they are.
        quantize: "8bit" or "4bit" weights, see `escdiff.backbone.quantized`.
        offload_text, splice_words, text_cache: see `TransformerBackbone`.

    Raises:
        UserError: what diffusers cannot load, or bitsandbytes is missing and `quantize` given.
    """
    try:
        if quantize:
            parts = DiffusionPipeline.load_config(plan.source, **hub_options(options))
            options["quantization_config"] = quantization(quantize, parts, dtype, not offload_text)
        stock = DiffusionPipeline.from_pretrained(plan.source, dtype=dtype, **options)
    except Exception as error:  # the loaders of three libraries raise what they like
        raise cannot_load(plan.name, error) from error
    return TransformerBackbone(stock, plan.name, offload_text, splice_words, text_cache).to(device)
