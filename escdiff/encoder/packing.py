"""A vision tower's tokens as one row of numbers per picture, to be stored and read again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from escdiff.encoder.encoder import ConceptEncoder


@dataclass(frozen=True)
class Packing:
    """What an encoder reads of its tower: `depths` of `num_depths`, (N, W) each, and the embedding (P; 0 for none)."""

    depths: tuple[int, ...]
    num_depths: int
    patches: int
    width: int
    embedding: int

    @classmethod
    def of(cls, encoder: ConceptEncoder) -> "Packing":
        """The packing of what this encoder reads."""
        config, vision = encoder.config, encoder.vision
        depths = tuple(sorted({*config.shape_depths, *config.appearance_depths}))
        embedding = vision.embedding_width if config.words else 0
        return cls(depths, vision.num_depths, vision.num_patches, vision.width, embedding)

    @property
    def values(self) -> int:
        """Numbers per picture."""
        return len(self.depths) * self.patches * self.width + self.embedding

    @property
    def name(self) -> str:
        """Tells packings of the same tower apart."""
        return ".".join(map(str, self.depths)) + ("e" if self.embedding else "")

    def pack(self, tokens_BNW: list[Tensor]) -> Tensor:
        """What `ConceptEncoder.tokens` gives -> (B, values)."""
        kept = [tokens_BNW[depth] for depth in self.depths] + ([tokens_BNW[-1]] if self.embedding else [])
        return torch.cat([tokens.flatten(1) for tokens in kept], 1)

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """(B, values) of any precision -> what `ConceptEncoder.tokens` gives, empty at depths nobody reads."""
        tokens, embedding = rows.float().split([self.values - self.embedding, self.embedding], 1)
        kept = dict(zip(self.depths, tokens.unflatten(1, (-1, self.patches, self.width)).unbind(1), strict=True))
        unread = tokens.new_empty(len(rows), 0, self.width)
        by_depth = [kept.get(depth, unread) for depth in range(self.num_depths)]
        return [*by_depth, embedding[:, None]] if self.embedding else by_depth
