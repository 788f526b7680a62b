"""The words that concepts add to a pipeline over a U-Net: what wraps its public `encode_prompt`.

Legend: B batch, L layer cell, S stage, K vectors, T token position, D width.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor

from escdiff.backbone.adapters.fused import fuse_of
from escdiff.concept import mask_slots
from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.conditioning.fuse import fuse_grid
from escdiff.conditioning.grid import expand, pack_stages
from escdiff.conditioning.header import BLANK, SHOWN, STOCK, Marks, header_rows, is_ours, read_picture
from escdiff.conditioning.text_tower import normalized
from escdiff.pipelines.attachments import Attachments, Entry
from escdiff.support.errors import UserError

PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")  # as `PromptEncoder` names them
# As diffusers says it.
TRUNCATED = "The following part of your input was truncated because CLIP can only handle sequences up to %d tokens: %s"
logger = logging.getLogger(__name__)


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
        loaded: by the concept's name.
        max_length: T of the text encoders, those of before where they were taken out.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        needed = ("unet", "tokenizer", "text_encoder")
        if not hasattr(pipeline, "encode_prompt") or any(getattr(pipeline, part, None) is None for part in needed):
            what = "a Stable Diffusion pipeline with a U-Net, a tokenizer and a text encoder"
            raise UserError(f"a {type(pipeline).__name__} was given; expected {what}")
        self.pipeline, self.stock = pipeline, pipeline.encode_prompt
        self.signature = inspect.signature(self.stock)
        self.loaded: dict[str, Entry] = {}
        self.attachments = Attachments(pipeline)
        self.max_length = 0
        self._names = [name for name in TEXT_PARTS if getattr(pipeline, name, None) is not None]
        self._encoder: PromptEncoder | None = None
        self._parts: list = []
        self._checked: dict[Entry, tuple] = {}  # what each was compared with

    @property
    def encoder(self) -> PromptEncoder:
        """Over the tokenizers and text encoders that the pipeline has now.

        Raises:
            UserError: one of them was taken out.
        """
        if (encoder := self._look()) is None:
            raise UserError("the pipeline has no text encoder any more; give prompt_embeds=, or put it back")
        return encoder

    def _look(self) -> PromptEncoder | None:
        """The encoder, or None where a part of it was taken out; then nothing here keeps the others in memory."""
        parts = [getattr(self.pipeline, name) for name in self._names]
        if any(part is None for part in parts):
            self._encoder, self._parts = None, []
        elif self._encoder is None or any(a is not b for a, b in zip(parts, self._parts, strict=True)):
            self._encoder, self._parts = PromptEncoder(**dict(zip(self._names, parts, strict=True))), parts
            self.max_length = self._encoder.max_length
        return self._encoder

    @property
    def vectors(self) -> dict[str, Tensor]:
        """All placeholders."""
        return {name: value for entry in self.loaded.values() for name, value in entry.vectors.items()}

    @property
    def space(self) -> ConditioningSpace:
        """One with room for all that is loaded."""
        self.refresh()
        return self.attachments.space

    def add(self, key: str, entry: Entry) -> tuple[str, ...]:
        """Load vectors by placeholder under a key; gives the placeholders.

        Raises:
            UserError: the key or a placeholder is taken, or the entry does not go with the pipeline or with others.
        """
        taken = sorted(self.vectors.keys() & entry.vectors.keys())
        if taken or key in self.loaded:
            what = taken[0] if taken else key
            raise UserError(f"the pipeline has a concept with {what} already; give this one a name, or unload that one")
        for tower in self.encoder.towers:
            tower.placeholders("", entry.vectors)  # refuses words that the tokenizer has already
        self.loaded[key] = entry
        try:
            self.refresh()
        except BaseException:
            self.remove([key])
            raise
        self.pipeline.encode_prompt = self.encode_prompt
        return tuple(entry.vectors)

    def remove(self, keys: Sequence[str]) -> None:
        """Unload; with the last one the pipeline is stock again."""
        for key in keys:
            self._checked.pop(self.loaded.pop(key), None)
        if self.loaded:
            self.attachments.update(self.loaded.values(), self.max_length)
        else:
            self.attachments.clear()
            vars(self.pipeline).pop("encode_prompt", None)

    def refresh(self) -> None:
        """Notice parts of the pipeline that were replaced: compare text encoders, bind another U-Net.

        Raises:
            UserError: a loaded concept was made for other parts.
        """
        encoder, unet = self._look(), unwrap_module(self.pipeline.unet)
        for entry in self.loaded.values():
            if entry.concept is not None and self._checked.get(entry) != (encoder, unet):
                finest = ConditioningSpace.p_plus(unet)
                same = set(entry.space.layer_names) == set(finest.layer_names)
                width = entry.concept.width if encoder is None else encoder.width
                text_hash = None if encoder is None or entry.any_text else encoder.fingerprint()
                entry.concept.check_fits(entry.space if same else finest, width, text_hash)
                self._checked[entry] = encoder, unet
        self.attachments.update(self.loaded.values(), self.max_length)

    def encode_prompt(self, *args, **kwargs) -> tuple:
        """The pipeline's own `encode_prompt`, with prompts that name a concept encoded here first."""
        given = self.signature.bind(*args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        self.refresh()
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if given.get(name) is not None:
                self.check_embeds(name, given[name])
        texts = [normalized(text) for name in PROMPTS for text in _listed(given.get(name)) or ()]
        named = any(name in text for name in self.vectors for text in texts)
        if named or any(self.is_packed(given.get(name)) for name in ("prompt_embeds", "negative_prompt_embeds")):
            with _lora_scale(self.pipeline, given.get("lora_scale")), torch.no_grad():
                given |= self.embeds(given)
        return self.stock(**given)

    def embeds(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """`prompt_embeds`, `negative_prompt_embeds` and what SDXL has besides; those that were given are kept."""
        skip, guided = given.get("clip_skip"), given["do_classifier_free_guidance"]
        made, grid, pooled = {}, given.get("prompt_embeds"), None
        if grid is None:
            prompts, second = _listed(given["prompt"]), _listed(given.get("prompt_2"))
            grid, pooled = self.encode(prompts, second, skip)
            made |= {"pooled_prompt_embeds": pooled}
        made["prompt_embeds"] = grid = self.packed(grid)
        if guided and (negative := given.get("negative_prompt_embeds")) is not None:
            made["negative_prompt_embeds"] = self.packed(negative, grid)
        elif guided:
            texts, second = given.get("negative_prompt"), given.get("negative_prompt_2")
            if texts is None and getattr(self.pipeline.config, "force_zeros_for_empty_prompt", False):
                negative = self.packed(grid.new_zeros(len(grid), self.max_length, grid.shape[2]), grid)
                pooled = torch.zeros_like(given["pooled_prompt_embeds"] if pooled is None else pooled)
            else:
                both = [text or texts or "" for text in (texts, second)]
                both = [text if isinstance(text, list) else [text] * len(grid) for text in both]
                if len(both[0]) != len(grid):
                    raise UserError(f"{len(both[0])} negative prompts were given for {len(grid)} prompts")
                negative, pooled = self.encode(*both, beside=grid)  # stock skips none here either
            made |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": pooled}
        return {name: value for name, value in made.items() if value is not None}

    def encode(
        self, prompts: list[str], second: list[str] | None = None, skip: int | None = None, beside: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S*L*T + H, D), or (B, T, D) where nothing is packed, and pooled (B, P).

        Args:
            beside: of negative prompts, the encoded prompts that they are guided away from.
        """
        encoder, convert = self.encoder, getattr(self.pipeline, "maybe_convert_prompt", None)
        second = second or prompts
        # Words of textual inversion with several vectors; diffusers spells them out by setting the tokenizer.
        if convert and any(word.endswith("_1") for word in self.pipeline.tokenizer.get_added_vocab()):
            prompts, second = (convert(p, encoder.towers[i].tokenizer) for i, p in ((0, prompts), (-1, second)))
        tokens = encoder.tokenize_all(prompts, self.vectors, second=second)
        for cut in zip(*([part.cut for part in parts] for parts in tokens), strict=True):
            if any(cut):
                logger.warning(TRUNCATED, encoder.max_length, [text for text in cut if text])
        grid, pooled = encoder.encode_tokens(tokens, self.vectors, skip)
        slots = [parts[0].slots for parts in tokens]
        return self.pack(self.fused(grid, slots), slots, beside), pooled

    def fused(self, grid_BLSTD: Tensor, slots: Sequence[Sequence[tuple[str, int]]]) -> Tensor:
        """The grid with what concepts fuse behind the text encoder.

        Raises:
            UserError: the U-Net brings no f for it.
        """
        fusions = {name: own for entry in self.loaded.values() for name, own in entry.fusions.items()}
        if not any(name in fusions for own in slots for name, _ in own):
            return grid_BLSTD
        if (fuse := fuse_of(unwrap_module(self.pipeline.unet))) is None:
            raise UserError("the concept is fused behind the text encoder, but its weights are not in the U-Net; load "
                            "it with them, from its file")  # fmt: skip
        return fuse_grid(grid_BLSTD, slots, fusions, fuse)

    def packed(self, embeds: Tensor, beside: Tensor | None = None) -> Tensor:
        """Embeddings (B, T, D) as those of a prompt that names a concept, equal in all cells; packed ones as they are.

        Raises:
            UserError: longer ones of another tool.
        """
        if not self.attachments.packs or self.is_packed(embeds):
            return embeds
        if embeds.shape[1] != self.max_length:
            raise UserError(
                f"embeddings of {embeds.shape[1]} tokens were given beside a prompt that names a concept; expected "
                f"{self.max_length}: encode both in one way, see escdiff.weighted"
            )
        return self.pack(embeds[:, None, None], [()] * len(embeds), beside)

    def pack(
        self, grid_BLSTD: Tensor, slots: Sequence[Sequence[tuple[str, int]]], beside: Tensor | None = None
    ) -> Tensor:
        """A grid (B, L|1, S|1, T, D) for the pipeline, with where the placeholders stand; see `encode`.

        Args:
            slots: of every prompt, (placeholder, first position) pairs.
        """
        if not self.attachments.packs:
            return grid_BLSTD[:, 0, 0]
        entries, space = self.loaded.values(), self.attachments.space
        parts = {name: part for entry in entries for name, part in entry.parts.items()}
        with_picture = {name for entry in entries if entry.image is not None for name in entry.vectors}
        picture = torch.tensor([SHOWN if any(name in with_picture for name, _ in own) else STOCK for own in slots])
        if beside is not None and self.is_packed(beside) and len(beside) == len(picture):
            guided = read_picture(beside, self.max_length).cpu().float() == SHOWN
            picture = torch.where(guided & (picture == STOCK), BLANK, picture)
        marks = Marks(mask_slots(slots, parts, self.max_length), picture)
        return pack_stages(expand(grid_BLSTD, space.num_layers, space.num_stages), marks)

    def is_packed(self, embeds: Tensor | None) -> bool:
        """Whether these embeddings were packed for the concepts that are loaded."""
        space = self.attachments.space
        if embeds is None or not self.attachments.packs:
            return False
        return is_ours(embeds, space.num_layers, space.num_stages, self.max_length)

    def check_embeds(self, name: str, embeds: Tensor) -> None:
        """Refuse embeddings that were packed for other concepts, or that a bound U-Net could not tell from packed ones.

        Raises:
            UserError: naming their length.
        """
        length, tokens = embeds.shape[1], self.max_length
        beyond = length - header_rows(tokens, embeds.shape[2])
        if beyond > 0 and beyond % tokens == 0 and not self.is_packed(embeds):
            raise UserError(
                f"{name} has {length} tokens, which is how concepts of {beyond // tokens} cells are packed, but other "
                "concepts are loaded; encode it anew, or unload them"
            )


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
