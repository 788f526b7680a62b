"""The prompts of a transformer: its stock pipeline's text encoders read words, its layers get vectors at them.

Whatever the vectors are, the text encoders read the same words, so each text is encoded once and kept.
Legend: B batch, L layers, S stages, K vectors per placeholder, T tokens, D width of the text, W width in the layers.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family import Family
from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.family.reading import MASK, only_encoder, residuals_at, undropped
from escdiff.backbone.family.spelling import Part, Spelled, spell
from escdiff.backbone.family.splicing import spliced_residuals
from escdiff.backbone.family.stored import hash_text, text_encoders
from escdiff.backbone.text_cache import TextCache
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

KEPT = 256  # texts; those used least recently go


class TransformerPrompts:
    """Tokenizers and text encoders of a stock pipeline as one.

    Attributes:
        splice: learned vectors are words inside the text encoder, see `escdiff.backbone.family.splicing`.
        folder: keep texts on disk, too.
        embedding_weight: None, since the layers' vectors belong to no vocabulary.
    """

    embedding_weight = None

    def __init__(
        self, pipeline: DiffusionPipeline, family: Family, splice: bool = False, folder: str | Path | None = None
    ) -> None:
        self.pipeline, self.family, self.model = pipeline, family, pipeline.transformer
        self.splice, self.folder = splice, folder
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def width(self) -> int:
        """W; or spliced, D of the text encoder's embeddings."""
        return self._embedding.embedding_dim if self.splice else self.family.layer_width(self.model)

    @property
    def _encoder(self) -> nn.Module:
        return only_encoder(self.pipeline, self.family.reading)

    @property
    def _embedding(self) -> nn.Module:
        return self._encoder.get_input_embeddings()

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments of `encode_prompt` beside prompts: those that the pipeline's own call passes on."""
        taken = inspect.signature(self.pipeline.encode_prompt).parameters
        usual = {name: p.default for name, p in inspect.signature(self.pipeline.__call__).parameters.items()}
        given = {name: usual[name] for name in ("max_sequence_length", "complex_human_instruction") if name in usual}
        fixed = {"clean_caption": False, "do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None}
        return {name: value for name, value in (given | fixed).items() if name in taken}

    def word_embedding(self, text: str, num_vectors: int | None = None) -> Tensor:
        """(K, W) of a word or phrase as the layers read it on its own, one per token; or their mean K times.

        Spliced, (K, D): its embeddings.

        Raises:
            UserError: the text has no token.
        """
        spelled = spell(text, {}, self.family.reading.lower)
        if not spelled.text:
            raise UserError(f"the text {text!r} has no token; give a word such as 'object'")
        with torch.no_grad():
            rows = (self._embedded(spelled.text) if self.splice else self._entered(spelled.text)).float()
        return rows if num_vectors is None else rows.mean(0, keepdim=True).repeat(num_vectors, 1)

    def _embedded(self, text: str) -> Tensor:
        """(K, D)."""
        ids = self.pipeline.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return self._embedding(ids.to(self._embedding.weight.device))

    def _entered(self, text: str) -> Tensor:
        """(K, W)."""
        (row,) = self._places([Spelled(text, ((Part(text, text, 1), 0, len(text)),))])
        return self.family.enter(self.model, self.encoded(text)[TEXT][0, [token for _, _, token in row]])

    @torch.no_grad()
    def encoded(self, text: str) -> dict[str, Tensor]:
        """Arguments of the model for a text of ordinary words, (1, ...) each, where the model is."""
        if text not in self._kept:
            cache, model = self._cache, self.model
            found = cache.get(text) if cache else None
            if found is None:
                found = self._arguments(text)
                if cache:
                    cache.put(text, found)
            types = {name: model.dtype if value.is_floating_point() else None for name, value in found.items()}
            self._kept[text] = {name: value.to(model.device, types[name]) for name, value in found.items()}
        self._kept.move_to_end(text)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[text]

    @cached_property
    def _cache(self) -> TextCache | None:
        """Of the encoders' weights as they are: a cast gives other states."""
        if self.folder is None:
            return None
        encoders = text_encoders(self.pipeline)
        kinds = [
            (type(part).__name__, part.dtype, getattr(part.config, "quantization_config", None)) for part in encoders
        ]
        return TextCache(self.folder, repr([hash_text(encoders), kinds, self.given]))

    def _arguments(self, text: str) -> dict[str, Tensor]:
        """As `encoded`, where the text encoders are."""
        results, reading = self._read([text]), self.family.reading
        found = {TEXT: results[reading.embeds[0]]} | {name: results[i] for name, i in reading.arguments.items()}
        whole = torch.ones(found[TEXT].shape[:2], dtype=torch.long)  # a mask that hides nothing
        return {name: whole if value is None else value for name, value in found.items()}

    def _read(self, texts: list[str]) -> tuple:
        """What the pipeline makes of them, with gradients."""
        return self.pipeline.encode_prompt(prompt=texts, device=text_encoders(self.pipeline)[0].device, **self.given)

    def forget(self) -> None:
        """Let go of all texts: the model was moved or cast."""
        self._kept.clear()
        vars(self).pop("_cache", None)

    def condition(
        self, texts: Sequence[str], residuals: Mapping[str, Tensor], words: Mapping[str, str], space: ConditioningSpace
    ) -> dict[str, Tensor]:
        """Arguments (B, ...) of a model that is attached with `space`, for texts with placeholders.

        Args:
            residuals: "<name>" -> (B|1, L|1, S|1, K, W), what layers or text encoder get at the words.
            words: "<name>" -> what the text encoders read in its place, at least as many tokens as it has vectors.
            space: of the model's own layers.

        Raises:
            UserError: a placeholder that is not known, or one beyond the last token.
        """
        parts = {name: (Part(name, words[name], value.shape[3]),) for name, value in residuals.items()}
        spelled = [spell(text, parts, self.family.reading.lower) for text in texts]
        arguments = _collate([self.encoded(text.text) for text in spelled])
        rows, reading = self._places(spelled), self.family.reading
        if self.splice:
            plain, tokens = [text.text for text in spelled], int(arguments[MASK].sum(1).max())
            places = undropped(rows, self.pipeline, reading, self.given)
            placed = spliced_residuals(
                self.family, self.model, self._encoder, plain, places, residuals, space, arguments[TEXT], tokens,
                lambda number, count: self._read([plain[number]] * count)[reading.embeds[0]],
            )  # fmt: skip
        else:
            placed = residuals_at(rows, residuals, (space.num_layers, space.num_stages, self.width))
        return arguments | {TEXT: self.family.pack(self.model, space, arguments[TEXT], placed)}

    def _places(self, spelled: list[Spelled]) -> list:
        return self.family.reading.places(
            self.pipeline, {"prompt": spelled}, self.given, self.given["max_sequence_length"]
        )


def _collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """(B, ...) of (1, ...) each; texts of several lengths, and their masks, end in zeros."""
    return {name: _joined([row[name] for row in rows], name.startswith("encoder_")) for name in rows[0]}


def _joined(parts: Sequence[Tensor], has_tokens: bool) -> Tensor:
    if has_tokens:
        longest = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts]
    return torch.cat(list(parts))
