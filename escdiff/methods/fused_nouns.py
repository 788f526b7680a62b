"""References that are fused into the states of their own nouns: what FastComposer and PortraitBooth share.

Space: P while it learns; a concept has two stages, the noisier of which reads the plain words.
Legend: B batch, M subjects of a picture, N of their words in a batch, E width of an embedding, h, w of a map.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import CROSS_KV, LowRank
from escdiff.backbone.adapters.fused import Fused, fuse_of
from escdiff.concept import WHOLE, Concept, placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.attention import layers_at
from escdiff.conditioning.fuse import fuse_at
from escdiff.conditioning.space import TRAIN_TIMESTEPS
from escdiff.data.prompts import SUBJECTS
from escdiff.methods import losses
from escdiff.methods.encoder_method import EncoderMethod


class Places(NamedTuple):
    """Where subjects stand in a batch's texts: of N words the sample, the token position and the subject's number."""

    rows: Tensor
    positions: Tensor
    subjects: Tensor


class FusedNouns(EncoderMethod):
    """Fuse embeddings at nouns, behind the text encoder, with low-rank keys and values.

    Args:
        embedding: E.
        init: the concept's noun. rank: of the change of K and V.
        plain: share of the sampling, at its beginning, that reads the plain words.
        keep: share of references that are not dropped. drop: of texts.
        masked: share of steps whose error counts on the subjects only.
        factor: of the maps that losses read, how many times smaller than the latents; None for the backbone's default.
    """

    few, many = 1, 5

    def __init__(
        self, backbone: Backbone, embedding: int, init: str, rank: int, plain: float, keep: float, drop: float,
        masked: float, factor: int | None, templates,
    ) -> None:  # fmt: skip
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, None, templates)
        self.plain, self.keep, self.drop, self.masked = plain, keep, drop, masked
        self.layers = layers_at(backbone.unet, factor)
        self.use_weights(Fused(backbone, embedding))
        self.use_weights(LowRank(backbone, rank, CROSS_KV))
        self.register_buffer("found", torch.zeros(embedding), persistent=False)  # (E,)

    def embed(self, pixels: Tensor, masks: Tensor | None) -> Tensor:
        """(N, E) of pictures (N, 3, H, W) in [-1, 1], of what lies within masks (N, 1, H, W)."""
        raise NotImplementedError

    @torch.no_grad()
    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        device = self.found.device
        self.found.copy_(self.embed(pixels.to(device), masks if masks is None else masks.to(device)).mean(0))

    def texts(self, prompts) -> list[str]:
        """The prompts, a share of them empty."""
        empty = (torch.rand(len(prompts)) < self.drop).tolist()
        return ["" if gone else text for gone, text in zip(empty, super().texts(prompts), strict=True)]

    def vectors(self, batch) -> dict[str, Tensor]:
        """The nouns themselves; what they stand for comes behind the text encoder."""
        if "nouns" not in batch:
            return {WHOLE: self.anchor(WHOLE)[None, None, None]}
        word, found = self.backbone.prompts.word_embedding, {}
        for number, name in enumerate(SUBJECTS):
            nouns = [own[min(number, len(own) - 1)] for own in batch["nouns"]]
            found[name.strip("<>")] = torch.stack([word(noun, 1).float() for noun in nouns])[:, None, None]
        return found

    def places(self, batch) -> Places:
        """Of the subjects in the batch's texts, at their nouns' last tokens."""
        counts = dict.fromkeys(SUBJECTS, 1) if "nouns" in batch else {placeholder(WHOLE): len(self.anchor(WHOLE))}
        names, tokenize = list(counts), self.backbone.prompts.tokenize
        slots = [tokenize(text, counts).slots for text in batch["texts"]]
        found = [(b, at + counts[name] - 1, names.index(name)) for b, own in enumerate(slots) for name, at in own]
        device = self.found.device
        return Places(*torch.tensor(found, dtype=torch.long, device=device).view(-1, 3).unbind(1))

    def embeddings(self, batch) -> Tensor:
        """(B, M, E) of the references; where a data set has none, of the picture's own object."""
        pixels, masks = batch.get("references"), batch.get("reference_masks")
        if pixels is None:
            pixels = batch["pixels"][:, None]
            masks = batch["mask"][:, None] if "mask" in batch else None
        found = self.embed(pixels.flatten(0, 1), None if masks is None else masks.flatten(0, 1))
        return found.unflatten(0, pixels.shape[:2])

    def fused(self, grid: Tensor, batch) -> Tensor:
        rows, positions, subjects = self.places(batch)
        embeddings = self.embeddings(batch)[rows, subjects]
        kept = (torch.rand(len(rows), device=grid.device) < self.keep).to(grid)
        return fuse_at(grid[:, 0], fuse_of(self.backbone.unet), rows, positions, embeddings, kept)[:, None]

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        masks = self.masks(batch)
        within = masks is not None and torch.rand(()).item() < self.masked
        return {"denoising": losses.denoising(output, target, mask=masks.amax(1, keepdim=True) if within else None)}

    @staticmethod
    def masks(batch) -> Tensor | None:
        """(B, M, H, W), 1 on each subject in the picture that is denoised."""
        return batch.get("masks", batch.get("mask"))

    def maps(self, batch) -> tuple[Tensor, Tensor]:
        """Attention maps (N, 1, h, w) of the subjects' words, and their masks of the same size."""
        rows, positions, subjects = self.places(batch)
        return self.mapped(batch, rows, positions, subjects)

    def mapped(self, batch, rows: Tensor, positions: Tensor, subjects: Tensor) -> tuple[Tensor, Tensor]:
        """As `maps`, of any words."""
        maps = batch["maps"].average()[rows, :, :, positions][:, None]
        masks = self.masks(batch)[rows, subjects][:, None].to(maps)
        return maps, F.interpolate(masks, maps.shape[-2:], mode="area")

    def concept(self, notes=None) -> Concept:
        found, share = super().concept(notes), torch.ones(1, 1)
        if self.plain:
            bounds = (0, round((1 - self.plain) * TRAIN_TIMESTEPS), TRAIN_TIMESTEPS)
            found.space = ConditioningSpace.build(self.backbone.unet, "tied", bounds)
            found.vectors = {name: v.expand(-1, 2, -1, -1).clone() for name, v in found.vectors.items()}
            share = torch.tensor([[1.0, 0.0]])
        found.fused, found.gates = {WHOLE: self.found.cpu().clone()}, {WHOLE: share}
        return found
