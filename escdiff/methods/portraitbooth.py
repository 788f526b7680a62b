"""PortraitBooth (Peng et al. 2024, arXiv 2312.06354), after the abstract: a face's identity fused at its noun.

There is no public code; what follows the paper's outline is its three parts, their forms and numbers are ours. STEA:
FastComposer's fuse with the embedding of a face recogniser. DIP: where there is little noise, the recogniser's cosine
between the denoised picture and the target. ECAC: the identity word's attention follows the face, the expression
word's lies within it. Theirs: a ready recogniser, the decoded picture in DIP. Ours: a small recogniser of latents
(`escdiff.methods.recogniser`), learned first in the same run and frozen from then on.
"""

import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.control.objectives import follow, inside
from escdiff.data.prompts import SUBJECTS
from escdiff.methods.base import Phase
from escdiff.methods.fused_nouns import FusedNouns
from escdiff.methods.recogniser import Recogniser, likeness


class PortraitBooth(FusedNouns):
    """A face's identity at its noun.

    Args:
        embedding: E of the recogniser. warmup: share of the steps that train it, and nothing else.
        dip: weight of the identity loss. low_noise: timesteps below which it counts.
        ecac: weight of the attention loss.
        init, rank, plain, keep, drop, masked, factor: see `FusedNouns`.
    """

    learns = "faces"

    def __init__(
        self, backbone: Backbone, embedding: int = 64, init: str = "face", rank: int = 8, warmup: float = 0.3,
        dip: float = 0.1, low_noise: int = 250, ecac: float = 0.01, plain: float = 0.2, keep: float = 0.9,
        drop: float = 0.1, masked: float = 0.5, factor: int | None = None, templates="auto",
    ) -> None:  # fmt: skip
        super().__init__(backbone, embedding, init, rank, plain, keep, drop, masked, factor, templates)
        self.recogniser = Recogniser(backbone.vae.config.latent_channels, embedding)
        self.warmup, self.dip, self.low_noise, self.ecac = warmup, dip, low_noise, ecac

    def phases(self, lr: float) -> list[Phase]:
        """The recogniser first, then what reads it."""
        own = {id(p): p for p in self.recogniser.parameters()}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        return [Phase(self.warmup, lr, list(own.values())), Phase(1 - self.warmup, lr, rest)]

    def watch(self) -> tuple[str, ...]:
        return self.layers if self.ecac else ()

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """(N, C, h, w) of pictures (N, 3, H, W) in [-1, 1], without their noise."""
        return self.backbone.mean_latents(self.backbone.moments(pixels).float())

    def embed(self, pixels: Tensor, masks: Tensor | None) -> Tensor:
        return self.recogniser.frozen(self.latents(pixels))

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        terms = super().losses(output, target, vectors, batch)
        seen = self.backbone.mean_latents(batch["latent"])
        other = batch["references"][:, 0] if "references" in batch else batch["pixels"].flip(-1)
        theirs = self.recogniser(seen)
        terms["likeness"] = likeness(self.recogniser(self.latents(other)), theirs)
        if self.dip:
            terms["identity"] = self.dip * self.identity(output, batch, theirs.detach())
        if self.ecac and self.masks(batch) is not None:
            terms["attention"] = self.ecac * self.attention(batch)
        return terms

    def identity(self, output: Tensor, batch, theirs: Tensor) -> Tensor:
        """DIP: mean of 1 - cos over the samples of little noise; zero without one.

        Args:
            theirs: (B, E) of the targets.
        """
        low = batch["timesteps"] < self.low_noise
        if not low.any():
            return output.sum() * 0
        clean = self.backbone.clean(output, batch["noisy"], batch["timesteps"])[low]
        return (1 - (self.recogniser.frozen(clean) * theirs[low]).sum(-1)).mean()

    def attention(self, batch) -> Tensor:
        """ECAC: the face's word on the face, and the expression's inside of it."""
        maps, masks = self.maps(batch)
        found = follow(maps, masks).mean() if len(maps) else maps.sum()
        rows, positions = self.expressions(batch)
        if not len(rows):
            return found
        words, faces = self.mapped(batch, rows, positions, torch.zeros_like(rows))
        return found + inside(words, faces).mean()

    def expressions(self, batch) -> tuple[Tensor, Tensor]:
        """(sample, last token's position) of the expressions' words in the batch's texts."""
        found, tower, counts = [], self.backbone.prompts.towers[0], dict.fromkeys(SUBJECTS, 1)
        for row, (text, word) in enumerate(zip(batch["texts"], batch.get("expressions", ()), strict=False)):
            if word and word in text:
                ids = tower.tokenize(text[: text.index(word) + len(word)], counts).ids
                found.append((row, ids.index(tower.tokenizer.eos_token_id) - 1))
        return torch.tensor(found, dtype=torch.long, device=self.found.device).view(-1, 2).unbind(1)
