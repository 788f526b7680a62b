"""CLIP's opinion (Radford et al. 2021): cosines of a picture with its text, and with its reference."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

BATCH = 32


class Clip:
    """A transformers CLIP with its preprocessor, read from its folder at the first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _model(self):
        from transformers import CLIPModel

        return CLIPModel.from_pretrained(self.folder, dtype=torch.float32).eval()

    @cached_property
    def _prepare(self):
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor.from_pretrained(self.folder)

    def text(self, pictures: Sequence[Image.Image], texts: Sequence[str], tokenizer) -> list[float]:
        """Cosine of each picture with its text, in the tokens of the backbone's tokenizer."""
        return _cosines(self._pictures(pictures), self._texts(texts, tokenizer))

    def image(self, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
        """Cosine of each picture with another one."""
        return _cosines(self._pictures(pictures), self._pictures(others))

    @torch.no_grad()
    def _texts(self, texts: Sequence[str], tokenizer) -> Tensor:
        ids = tokenizer(list(texts), padding="longest", truncation=True, return_tensors="pt").input_ids
        return self._model.text_projection(self._model.text_model(input_ids=ids).pooler_output)

    @torch.no_grad()
    def _pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self._prepare(list(pictures), return_tensors="pt")["pixel_values"]
        pooled = [self._model.vision_model(pixel_values=part).pooler_output for part in pixels.split(BATCH)]
        return self._model.visual_projection(torch.cat(pooled))


def _cosines(first: Tensor, second: Tensor) -> list[float]:
    return torch.cosine_similarity(first, second, dim=-1).tolist()
