"""The one optimisation loop of all customization methods, over a frozen backbone."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import placeholder
from escdiff.conditioning import PromptEncoder
from escdiff.encoder.branches import route, unroute
from escdiff.methods import Method
from escdiff.training import mini
from escdiff.training.feed import LayerFeed
from escdiff.training.timesteps import draw_timesteps


class MethodModule(L.LightningModule):
    """Noise the references' latents, let the method say what its placeholders mean, denoise, add its losses up.

    Batches hold "prompt" (B texts), "latent" (B, 2C, h, w) moments, and may hold "pixels" (B, 3, H, W), "mask"
    (B, 1, H, W) and "weight" (B,).

    Attributes:
        seconds: spent on customizing so far, over all sittings; loading the backbone is not part of it.
    """

    def __init__(
        self, method: Method, lr: float, max_steps: int, warmup: int = 0, weight_decay: float = 0.0,
        high_noise_bias: float = 0.0, seconds: float = 0.0, references: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.lr, self.max_steps = method, lr, max_steps
        self.warmup, self.weight_decay = warmup, weight_decay
        self.high_noise_bias, self.references = high_noise_bias, references
        self.seconds, self._clock = seconds, None
        self._feed: LayerFeed | None = None

    @property
    def backbone(self) -> Backbone:
        return self.method.backbone

    def on_fit_start(self) -> None:
        if self.backbone.device != self.device:
            self.backbone.to(self.device)
        self._feed = LayerFeed(self.backbone.unet, self.method.space)
        self._clock = time.perf_counter()

    def on_fit_end(self) -> None:
        self._feed.remove()

    def on_after_backward(self) -> None:
        self._feed.clear()
        unroute(self.backbone.unet)

    def training_step(self, batch: Mapping[str, Any], _: int) -> dict[str, Any]:
        method, backbone = self.method, self.backbone
        latents = self.latents(batch)
        timesteps, stage = self.draw(len(latents))
        noise = torch.randn_like(latents)
        noisy = backbone.add_noise(latents, noise, timesteps)
        batch = {**batch, "noisy": noisy, "timesteps": timesteps, "stage": stage}
        vectors = method.vectors(batch)
        texts = method.texts(batch["prompt"])
        grid = condition(backbone.prompts, texts, method.placed(vectors), stage)
        route(backbone.unet, backbone.prompts, texts, {placeholder(a): v.shape[3] for a, v in vectors.items()})
        plain = self._feed.load(grid.expand(-1, method.space.num_layers, -1, -1))
        output = backbone.predict(noisy, timesteps, plain, **method.added(batch)).float()
        target = backbone.target(latents, noise, timesteps)
        terms = method.losses(output, target, vectors, batch)
        error = (output.detach() - target).square().mean((1, 2, 3))
        logs = {name: value.detach() for name, value in terms.items()}
        return {"loss": sum(terms.values()), "error": error, "timesteps": timesteps, "logs": logs}

    def latents(self, batch: Mapping[str, Any]) -> Tensor:
        moments = batch["latent"] if "latent" in batch else self.backbone.moments(batch["pixels"])
        return self.backbone.sample_latents(moments.float())

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and stages (B,): each sample's own, or of one stage for all where the method says so."""
        space = self.method.space
        alone = space.num_stages > 1 and not self.method.shared_stage
        rows, draws = (count, 1) if alone else (1, count)
        timesteps, stage = draw_timesteps(rows, draws, self.high_noise_bias, space, self.device)
        return timesteps.flatten(), stage.repeat_interleave(draws)

    def configure_optimizers(self):
        groups = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(groups, self.lr, weight_decay=self.weight_decay)
        return mini.with_schedule(optimizer, self.warmup, self.max_steps, decay=0.0)

    def spent(self) -> float:
        return self.seconds + (0.0 if self._clock is None else time.perf_counter() - self._clock)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["method_seconds"] = self.spent()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["method_seconds"]

    def export(self, folder: Path) -> None:
        """Write the concept and its adapter; before any reference was seen, what was learned from the data."""
        notes = {"seconds": f"{self.spent():.3f}", "steps": str(self.trainer.global_step)}
        notes["parameters"] = str(self.method.changed())
        if self.references:
            self.method.export(folder, notes)
        else:
            self.method.save_pretrained(folder)


def condition(prompts: PromptEncoder, texts: Sequence[str], vectors: Mapping[str, Tensor], stage_B: Tensor) -> Tensor:
    """The conditioning (B, L|1, T, D) of every sample's own stage.

    What is equal is encoded once: texts, where all samples share the vectors, and stages that several samples drew.

    Args:
        vectors: attribute -> (B|1, L|1, S|1, K, D), or pairs of `escdiff.conditioning.placement`.
        stage_B: int64.
    """
    several = any(value.shape[2] > 1 for value in vectors.values())
    stages, own_stage_B = stage_B.unique(return_inverse=True)
    chosen = {
        placeholder(a): value if value.shape[2] == 1 else value[:, :, stages.to(value.device)]
        for a, value in vectors.items()
    }
    shared = all(len(value) == 1 for value in chosen.values())
    unique = list(dict.fromkeys(texts)) if shared else list(texts)
    grid = prompts.encode(unique, chosen)  # (texts, L, stages, T, D)
    row_B = torch.tensor([unique.index(text) for text in texts] if shared else range(len(texts)), device=grid.device)
    if not several or len(stages) == 1:
        grid = grid[:, :, 0]
        return grid.expand(len(texts), -1, -1, -1) if len(unique) == 1 else grid[row_B]
    return grid[row_B, :, own_stage_B.to(grid.device)]
