"""Networks from pictures and texts to vectors: CLIP (Radford et al. 2021), DINO (Caron et al. 2021) and the like.

Legend: B pictures or texts, D width of a vector. Vectors come unnormalised; scores take cosines.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import mini_folder
from escdiff.data.pretrained import BUNDLED, read

BATCH = 32


class Features(Protocol):
    """Anything with vectors of pictures."""

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU."""


class _Lazy:
    """A model of transformers with its own preprocessing, read at the first use."""

    def __init__(self, name: str | Path, device: str = "cpu") -> None:
        self.name, self.device = str(name), device

    @cached_property
    def _prepare(self):
        from transformers import AutoImageProcessor

        return read(AutoImageProcessor, self.name)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU."""
        parts = []
        for first in range(0, len(pictures), BATCH):
            pixels = self._prepare(list(pictures[first : first + BATCH]), return_tensors="pt")["pixel_values"]
            parts.append(self._encode(pixels.to(self.device)).float().cpu())
        return torch.cat(parts)

    def _encode(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


class Clip(_Lazy):
    """A CLIP: projected vectors of pictures and of texts.

    Args:
        tokenizer: for a folder that holds none.
    """

    def __init__(self, name: str | Path, tokenizer=None, device: str = "cpu") -> None:
        super().__init__(name, device)
        self._given_tokenizer = tokenizer

    @cached_property
    def _model(self):
        from transformers import CLIPModel

        return read(CLIPModel, self.name, dtype=torch.float32).eval().to(self.device)

    @cached_property
    def _tokenizer(self):
        from transformers import AutoTokenizer

        return self._given_tokenizer or read(AutoTokenizer, self.name)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, D) vectors of texts, cut at CLIP's 77 tokens."""
        most = self._model.config.text_config.max_position_embeddings
        options = {"padding": "longest", "truncation": True, "max_length": most, "return_tensors": "pt"}
        ids = self._tokenizer(list(texts), **options).input_ids.to(self.device)
        return self._model.text_projection(self._model.text_model(input_ids=ids).pooler_output).float().cpu()

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)


class ClassToken(_Lazy):
    """The class token of a vision transformer's normalised last layer, as DINO and DINOv2 are used."""

    @cached_property
    def _model(self):
        from transformers import AutoModel

        return read(AutoModel, self.name, dtype=torch.float32).eval().to(self.device)

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]


def load_clip(name: str, device: str = "cpu") -> Clip:
    """A CLIP by folder or hub id, or the bundled one as "mini"."""
    if name != BUNDLED:
        return Clip(name, device=device)
    from transformers import CLIPTokenizer

    return Clip(BUNDLED, CLIPTokenizer.from_pretrained(mini_folder() / "tokenizer"), device)
