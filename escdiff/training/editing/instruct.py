"""InstructPix2Pix: a U-Net that reads a picture beside its latents, and an instruction for a prompt.

Brooks, Holynski, Efros 2023, "InstructPix2Pix: Learning to Follow Image Editing Instructions". The whole U-Net learns;
5 % of the samples lose the instruction, 5 % the picture and 5 % both, so that sampling can guide by each.
Legend: B batch, C latent channels, h, w latent height and width.
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.wide_input import widened
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.timesteps import draw_timesteps

DROPPED = 0.05  # share of samples without the instruction, of those without both, of those without the picture


class InstructModule(L.LightningModule):
    """Learns to paint "after" from "before" and "instruction", see `pairs.EditPairs`.

    The backbone stays as it is: `unet` is a widened copy in float32.
    """

    def __init__(
        self, backbone: Backbone, lr: float, max_steps: int, warmup: int = 0, weight_decay: float = 0.01,
        high_noise_bias: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lr, self.max_steps, self.warmup, self.weight_decay = lr, max_steps, warmup, weight_decay
        self.high_noise_bias = high_noise_bias
        self.unet = widened(backbone.unet, backbone.vae.config.latent_channels).float().requires_grad_(True).train()
        self._frozen = (backbone,)  # a tuple hides it from nn.Module

    def training_step(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        (backbone,) = self._frozen
        if backbone.device != self.device:
            backbone.to(self.device)
        latents = backbone.sample_latents(batch["after"].float())
        timesteps = draw_timesteps(len(latents), 1, self.high_noise_bias, device=self.device)[0].flatten()
        noise = torch.randn_like(latents)
        noisy = backbone.add_noise(latents, noise, timesteps)
        texts, shown = dropped(batch["instruction"], as_shown(batch["before"].float()))
        with torch.no_grad():
            states = backbone.prompts.encode_plain(texts)[:, 0, 0]
        output = self.unet(torch.cat([noisy, shown], 1), timesteps, states.to(noisy)).sample.float()
        error = (output - backbone.target(latents, noise, timesteps)).square().mean((1, 2, 3))
        return {"loss": error.mean(), "error": error.detach(), "timesteps": timesteps, "logs": {}}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.unet.parameters(), self.lr, weight_decay=self.weight_decay)
        return with_schedule(optimizer, self.warmup, self.max_steps)


def as_shown(moments: Tensor) -> Tensor:
    """(B, C, h, w) that the U-Net reads of a picture's moments (B, 2C, h, w): the mode, not scaled as latents are."""
    return moments.chunk(2, 1)[0]


def dropped(texts: list[str], shown: Tensor) -> tuple[list[str], Tensor]:
    """The instructions and pictures of a batch, of some samples an empty text, zeros or both, see `DROPPED`."""
    draw = torch.rand(len(texts), device="cpu")
    kept = (draw < DROPPED) | (draw >= 3 * DROPPED)  # the picture
    texts = ["" if value < 2 * DROPPED else text for text, value in zip(texts, draw.tolist(), strict=True)]
    return texts, shown * kept.to(shown)[:, None, None, None]
