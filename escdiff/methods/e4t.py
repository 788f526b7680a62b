"""E4T (Gal et al. 2023, arXiv 2302.12228): an encoder's word plus weight offsets, then 5 to 15 steps of tuning.

Space: P, 1 x 1. The encoder reads CLIP's patches at several depths and the U-Net's own features; the word is the class
word plus 0.1 times its output, held near by an L2 of 0.01; every attention layer, self and cross, gets an offset.
Paper: one domain per encoder, 30-100 k steps, lr 1e-6, then 5 to 15 steps at batch 16. Ours: the U-Net's features are
of the reference's own latents at timestep 0 with an empty prompt, so that the word does not change along the sampling;
the offsets are low-rank sums instead of row-and-column products; tuning moves the word and the offsets, not the whole
U-Net.
"""

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import ATTENTION, LowRank
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.vision import load_vision
from escdiff.methods import losses
from escdiff.methods.encoder_method import EncoderMethod, check_depths, pooled


class E4T(EncoderMethod):
    """Encoder, offsets, tuning.

    Args:
        vision: see `escdiff.encoder.load_vision`. depths: that the encoder reads.
        init: word of the domain. rank: of the offsets.
        step: share of the encoder's output, in units of the word's norm, that is added to the word.
        residual: weight of the output's mean square.
        tuning_steps: from the prediction, at optim.lr.

    Raises:
        UserError: depths that the tower lacks.
    """

    def __init__(
        self, backbone: Backbone, vision: str = "mini", depths=(1, 3), init: str = "object", rank: int = 4,
        step: float = 0.1, residual: float = 0.01, tuning_steps: int = 15, templates="auto",
    ) -> None:  # fmt: skip
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, 1, templates)
        tower = load_vision(vision)
        self._tower, self.depths = (tower,), check_depths("method.depths", depths, tower)
        self.step, self.residual, self.tuning_steps = step, residual, tuning_steps
        channels = backbone.unet.config.block_out_channels
        count, inner = len(self.depths) * tower.width + sum(channels) + channels[-1], 2 * backbone.width
        self.encoder = nn.Sequential(
            nn.LayerNorm(count), nn.Linear(count, inner), nn.LeakyReLU(), nn.LayerNorm(inner),
            nn.Linear(inner, inner), nn.LeakyReLU(), nn.LayerNorm(inner), nn.Linear(inner, backbone.width),
        )  # fmt: skip
        nn.init.zeros_(self.encoder[-1].weight)  # start at the word
        nn.init.zeros_(self.encoder[-1].bias)
        self.use_weights(LowRank(backbone, rank, ATTENTION))
        self.register_buffer("predicted", self.anchor("concept").clone(), persistent=False)  # (K, D)
        self.tuned = nn.Parameter(torch.zeros_like(self.predicted), requires_grad=False)

    @torch.no_grad()
    def features(self, pixels: Tensor, moments: Tensor) -> Tensor:
        """(B, F): CLIP's patches, pooled, and what the U-Net's down and mid blocks make of the clean latents."""
        clip = [pooled(self._tower[0].to(pixels.device)(pixels)[d]) for d in self.depths]
        backbone, unet, found = self.backbone, self.backbone.unet, []

        def keep(module, args, output):
            sample = output[0] if isinstance(output, tuple) else output
            found.append(sample.float().mean((2, 3)))

        handles = [block.register_forward_hook(keep) for block in (*unet.down_blocks, unet.mid_block)]
        unet.disable_adapters()  # the features must not move with the offsets
        try:
            latents = backbone.mean_latents(moments)
            empty = backbone.prompts.encode_plain([""])[:, 0, 0].expand(len(latents), -1, -1)
            backbone.predict(latents, torch.zeros(len(latents), dtype=torch.long), empty)
        finally:
            unet.enable_adapters()
            for handle in handles:
                handle.remove()
        return torch.cat([*clip, *found], 1)

    def word(self, features: Tensor) -> Tensor:
        """(B, K, D)."""
        anchor = self.anchor("concept")
        return anchor + self.step * anchor.norm() * self.encoder(features)[:, None]

    @torch.no_grad()
    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        pixels = pixels.to(self.predicted.device)
        moments = self.backbone.moments(pixels).float()
        self.predicted.copy_(self.word(self.features(pixels, moments)).mean(0))
        self.encoder.requires_grad_(False)  # from here on the word itself moves
        self.tuned.requires_grad_(True)

    def vectors(self, batch) -> dict[str, Tensor]:
        if self.tuned.requires_grad or not batch:
            return {"concept": (self.predicted + self.tuned)[None, None, None]}
        return {"concept": self.word(self.features(batch["pixels"], batch["latent"]))[:, None, None]}

    def regularizers(self, vectors) -> dict[str, Tensor]:
        anchor = self.anchor("concept")
        output = (vectors["concept"] - anchor) / (self.step * anchor.norm())
        return {"residual": self.residual * losses.residual_l2(output)}
