"""Concepts in anybody's diffusers pipeline: `load_concept(pipe, "mug.safetensors")`, then "a photo of a <shape>".

The pipeline's public `encode_prompt` is wrapped on the instance, and each cross-attention layer of its U-Net (and of
ControlNets) is bound to its slice. Prompts without a loaded placeholder take the stock path, untouched.
Legend: B batch, L layer cell, S stage, K vectors, T token position, D width.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, reduce
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace, PromptEncoder, bind
from escdiff.conditioning.grid import expand, pack_stages
from escdiff.errors import UserError

UNNAMED = ""  # the key of a concept that was loaded without a name
PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")


def load_concept(
    pipeline: DiffusionPipeline,
    concept: Concept | str | os.PathLike,
    name: str | None = None,
    strength: float | Mapping[str, float] = 1.0,
    other_text_encoder: bool = False,
) -> tuple[str, ...]:
    """Teach a pipeline the placeholders of a concept.

    Works with every diffusers pipeline over a UNet2DConditionModel that has `encode_prompt`: Stable Diffusion 1.x, 2.x
    and XL, image to image, inpainting, ControlNet; with any scheduler, LoRA and `torch.compile`.

    Args:
        concept: or its file.
        name: several concepts in one prompt need names: "mug" gives `<mug>`, `<mug-shape>` and `<mug-appearance>`;
            without a name they are `<concept>`, `<shape>` and `<appearance>`.
        strength: see `Concept.scaled`.
        other_text_encoder: accept a text encoder that was fine-tuned since; what the concept says may then shift.

    Returns:
        The placeholders.

    Raises:
        UserError: a concept for another model, naming both sides; a name that is taken; a pipeline of another kind.
    """
    concept = (concept if isinstance(concept, Concept) else Concept.load(concept)).scaled(strength)
    if concept.extras or "adapter" in concept.notes:
        raise UserError("this concept brings weights or image tokens along; expected words: use `python infer.py`")
    words = words_of(pipeline)
    text_hash = None if other_text_encoder else words.encoder.fingerprint()
    concept.check_fits(words.fitting(concept.space), words.encoder.width, text_hash)
    return words.add(name or UNNAMED, concept.placeholders(name), concept.space)


def unload_concept(pipeline: DiffusionPipeline, name: str | None = None) -> None:
    """Take one concept out, or all of them without a name; after the last one the pipeline is stock, bit for bit.

    Raises:
        UserError: no concept of this name is loaded.
    """
    words = words_of(pipeline)
    if name is not None and name not in words.loaded:
        raise UserError(f"no concept {name!r} is loaded; expected one of {', '.join(words.loaded) or 'none'}")
    words.remove(list(words.loaded) if name is None else [name])


@contextmanager
def loaded(
    pipeline: DiffusionPipeline, vectors: Mapping[str, Tensor], space: ConditioningSpace
) -> Iterator[DiffusionPipeline]:
    """A pipeline that knows `{"<shape>": (B or 1, L, S, K, D)}` as long as this stands.

    Raises:
        UserError: a placeholder that a loaded concept has.
    """
    words, key = words_of(pipeline), "\0"
    words.add(key, vectors, space)
    try:
        yield pipeline
    finally:
        words.remove([key])


def words_of(pipeline: DiffusionPipeline) -> "Words":
    """The words that a pipeline has learned, none at first.

    Raises:
        UserError: a pipeline of another kind.
    """
    words = getattr(vars(pipeline).get("encode_prompt"), "__self__", None)
    return words if isinstance(words, Words) else Words(pipeline)


class Words:
    """What loaded concepts add to a pipeline's prompts.

    Attributes:
        loaded: key -> (placeholder -> (B or 1, L, S, K, D), space).
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        unet = getattr(pipeline, "unet", None)
        if not hasattr(pipeline, "encode_prompt") or unet is None or getattr(pipeline, "text_encoder", None) is None:
            what = "a Stable Diffusion pipeline with a U-Net and a text encoder"
            raise UserError(f"a {type(pipeline).__name__} was given; expected {what}")
        self.pipeline, self.stock = pipeline, pipeline.encode_prompt
        self.signature = inspect.signature(self.stock)
        self.loaded: dict[str, tuple[dict[str, Tensor], ConditioningSpace]] = {}
        self.bindings: list = []
        self.bound: ConditioningSpace | None = None

    @property
    def encoder(self) -> PromptEncoder:
        """Over the text encoders that the pipeline has now."""
        parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        return PromptEncoder(*(getattr(self.pipeline, part, None) for part in parts))

    @cached_property
    def finest(self) -> ConditioningSpace:
        """P+ of the U-Net."""
        return ConditioningSpace.p_plus(getattr(self.pipeline.unet, "_orig_mod", self.pipeline.unet))

    @property
    def vectors(self) -> dict[str, Tensor]:
        """All placeholders."""
        return {name: value for vectors, _ in self.loaded.values() for name, value in vectors.items()}

    @property
    def space(self) -> ConditioningSpace:
        """One with room for all that is loaded."""
        spaces = [space for _, space in self.loaded.values()]
        return reduce(ConditioningSpace.join, spaces, ConditioningSpace((self.finest.layer_names,)))

    def fitting(self, space: ConditioningSpace) -> ConditioningSpace:
        """This space if it partitions the U-Net's layers, else P+, to compare with."""
        return space if set(space.layer_names) == set(self.finest.layer_names) else self.finest

    def add(self, key: str, vectors: Mapping[str, Tensor], space: ConditioningSpace) -> tuple[str, ...]:
        """Load vectors by placeholder under a key; gives the placeholders.

        Raises:
            UserError: the key or a placeholder is taken, or the space does not go with those that are loaded.
        """
        taken = sorted(self.vectors.keys() & vectors.keys())
        if taken or key in self.loaded:
            what = taken[0] if taken else key
            raise UserError(f"the pipeline has a concept with {what} already; give this one a name, or unload that one")
        self.space.join(space)  # which says if they do not go together
        self.loaded[key] = (dict(vectors), space)
        self.bind()
        self.pipeline.encode_prompt = self.encode_prompt
        return tuple(vectors)

    def remove(self, keys: Sequence[str]) -> None:
        """Unload; with the last one the pipeline is stock again."""
        for key in keys:
            del self.loaded[key]
        self.bind()
        if not self.loaded:
            vars(self.pipeline).pop("encode_prompt", None)

    def bind(self) -> None:
        """Bind the U-Net and ControlNets to the space, unless they are."""
        space = self.space
        space = space if space.num_layers * space.num_stages > 1 else None
        if space == self.bound:
            return
        while self.bindings:
            self.bindings.pop().remove()
        self.bound = space
        if space is not None:
            self.bindings.append(bind(self.pipeline.unet, space))
            control = getattr(self.pipeline, "controlnet", None)
            for net in getattr(control, "nets", [control] if control is not None else []):
                self.bindings.append(bind(net, space, whole=False))

    def encode_prompt(self, *args, **kwargs) -> tuple:
        """The pipeline's own `encode_prompt`, with prompts that name a concept encoded here first."""
        given = self.signature.bind(*args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        texts = [text for name in PROMPTS for text in _listed(given.get(name)) or ()]
        if given.get("prompt_embeds") is None and any(name in text for name in self.vectors for text in texts):
            with _lora_scale(self.pipeline, given.get("lora_scale")), torch.no_grad():
                given |= self.embeds(given)
        return self.stock(**given)

    def embeds(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """`prompt_embeds`, `negative_prompt_embeds` and what SDXL has besides."""
        prompts = _listed(given["prompt"])
        grid, pooled = self.encode(prompts, _listed(given.get("prompt_2")), given.get("clip_skip"))
        found = {"prompt_embeds": grid, "pooled_prompt_embeds": pooled}
        if given["do_classifier_free_guidance"]:
            negative, second = given.get("negative_prompt"), given.get("negative_prompt_2")
            if negative is None and getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False):
                grid, pooled = torch.zeros_like(grid), torch.zeros_like(pooled)
            else:
                both = [text or negative or "" for text in (negative, second)]
                both = [texts if isinstance(texts, list) else [texts] * len(prompts) for texts in both]
                if len(both[0]) != len(prompts):
                    raise UserError(f"{len(both[0])} negative prompts were given for {len(prompts)} prompts")
                grid, pooled = self.encode(*both)
            found |= {"negative_prompt_embeds": grid, "negative_pooled_prompt_embeds": pooled}
        return {name: value for name, value in found.items() if value is not None}

    def encode(
        self, prompts: list[str], second: list[str] | None = None, skip: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Packed (B, S*L*T, D) and pooled (B, P)."""
        encoder, convert = self.encoder, getattr(self.pipeline, "maybe_convert_prompt", None)
        second = second or prompts
        if convert:  # words of textual inversion with several vectors
            prompts, second = (convert(p, encoder.towers[i].tokenizer) for i, p in ((0, prompts), (-1, second)))
        grid, pooled = encoder.encode_pooled(prompts, self.vectors, second=second, skip=skip)
        return pack_stages(expand(grid, self.space.num_layers, self.space.num_stages)), pooled


@contextmanager
def _lora_scale(pipeline: DiffusionPipeline, scale: float | None) -> Iterator[None]:
    """LoRAs of the text encoders at a scale, as the stock `encode_prompt` sets it."""
    parts = [getattr(pipeline, part, None) for part in ("text_encoder", "text_encoder_2")] if scale is not None else []
    parts = [part for part in parts if part is not None]
    for part in parts:
        scale_lora_layers(part, scale)
    try:
        yield
    finally:
        for part in parts:
            unscale_lora_layers(part, scale)


def _listed(prompts: str | list[str] | None) -> list[str] | None:
    return [prompts] if isinstance(prompts, str) else prompts
