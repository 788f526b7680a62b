"""AnyDoor's training: the scene with the object is painted from the scene without it and another view of the object.

Chen et al. 2024, "AnyDoor". The branch, the projector and, if asked for, the U-Net's upward half learn; of 10 % of the
samples the reference is dropped, which theirs never are though sampling guides away from an empty one.
"""

from typing import Any

import lightning as L
import torch

from escdiff.backbone import Backbone
from escdiff.pipelines.collage import collage
from escdiff.pipelines.placer import Placer
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.timesteps import draw_timesteps

DROPPED = 0.1  # share of samples without the reference's states


class PlacingModule(L.LightningModule):
    """Batches hold "before", "after", "reference" (B, 3, H, W) in [-1, 1], "mask" (B, 1, H, W) and "box", B boxes."""

    def __init__(
        self, backbone: Backbone, placer: Placer, lr: float, max_steps: int, warmup: int = 0,
        weight_decay: float = 0.01, high_noise_bias: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.placer, self._frozen = placer, (backbone,)  # a tuple hides it from nn.Module
        self.lr, self.max_steps, self.warmup, self.weight_decay = lr, max_steps, warmup, weight_decay
        self.high_noise_bias = high_noise_bias

    def training_step(self, batch: dict[str, Any], _: int) -> dict[str, Any]:
        (backbone,) = self._frozen
        if backbone.device != self.device:
            backbone.to(self.device)
            self.placer.vision.to(self.device)
            self.placer.unet.to(self.device)
        latents = backbone.sample_latents(backbone.moments(batch["after"]).float())
        timesteps = draw_timesteps(len(latents), 1, self.high_noise_bias, device=self.device)[0].flatten()
        noise = torch.randn_like(latents)
        states = self.placer.identity(batch["reference"], batch["mask"])
        dropped = (torch.rand(len(states), device="cpu") < DROPPED).to(states)[:, None, None]
        states = torch.lerp(states, self.placer.empty(*states.shape[:2]), dropped)
        shown = collage(batch["before"], batch["reference"], batch["mask"], batch["box"])
        output = self.placer(backbone.add_noise(latents, noise, timesteps), timesteps, states, shown).float()
        error = (output - backbone.target(latents, noise, timesteps)).square().mean((1, 2, 3))
        return {"loss": error.mean(), "error": error.detach(), "timesteps": timesteps, "logs": {}}

    def configure_optimizers(self):
        learned = [p for p in self.placer.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, self.lr, weight_decay=self.weight_decay)
        return with_schedule(optimizer, self.warmup, self.max_steps)
