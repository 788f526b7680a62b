"""The one optimisation loop of all customization methods, over a frozen backbone."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from escdiff.backbone.frozen import Feed, Frozen
from escdiff.concept import placeholder
from escdiff.control.maps import AttentionMaps
from escdiff.methods import Method, losses
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.timesteps import draw_timesteps
from escdiff.training.method.phases import Phases


class MethodModule(L.LightningModule):
    """Noise the references' latents, let the method say what its placeholders mean, denoise, add its losses up.

    Batches hold "prompt" (B texts) and "latent" (B, 2C, h, w) moments or "pixels" (B, 3, H, W) or both, and may hold
    "masks" (B, M, H, W) and "weight" (B,). The method always sees "latent".

    Args:
        anchor: share of the loss that is the vectors' distance from their words, see `losses.anchored`.

    Attributes:
        seconds: spent on customizing so far, over all sittings; loading the backbone is not part of it.
    """

    def __init__(
        self, method: Method, lr: float, max_steps: int, warmup: int = 0, weight_decay: float = 0.0,
        high_noise_bias: float = 0.0, seconds: float = 0.0, references: bool = True, anchor: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.lr, self.max_steps = method, lr, max_steps
        self.warmup, self.weight_decay = warmup, weight_decay
        self.high_noise_bias, self.references, self.anchor = high_noise_bias, references, anchor
        self.seconds, self._clock = seconds, None
        self._hooks = ExitStack()
        self._feed: Feed | None = None
        self._maps: AttentionMaps | None = None
        self._phases = Phases(method.phases(lr), max_steps)

    @property
    def backbone(self) -> Frozen:
        return self.method.backbone

    def on_fit_start(self) -> None:
        if self.backbone.device != self.device:
            self.backbone.to(self.device)
        method, backbone = self.method, self.backbone
        anchors = {a: method.anchor(a) for a in method.attributes}
        self._feed = backbone.feed(method.space, method.words, anchors)
        self._hooks.callback(self._feed.remove)
        if layers := method.watch():  # of a U-Net; a transformer's attention is read by none
            self._maps = self._hooks.enter_context(AttentionMaps(backbone.denoiser, layers))
        self._clock = time.perf_counter()

    def on_fit_end(self) -> None:
        self._hooks.close()

    def on_after_backward(self) -> None:
        self._feed.clear()
        self._phases.rest(self.global_step)

    def training_step(self, batch: Mapping[str, Any], _: int) -> dict[str, Any]:
        density = self.method.timestep_density(self.high_noise_bias)
        output, target, vectors, batch = self.denoise(batch, density)
        terms = self.method.losses(output, target, vectors, batch)
        if self.anchor:
            distance = losses.anchored(vectors, {name: self.method.anchor(name) for name in vectors})
            terms = {name: (1 - self.anchor) * value for name, value in terms.items()}
            terms["anchor"] = self.anchor * distance
        error = (output.detach() - target).square().mean((1, 2, 3))
        logs = {name: value.detach() for name, value in terms.items()}
        return {"loss": sum(terms.values()), "error": error, "timesteps": batch["timesteps"], "logs": logs}

    def validation_step(self, batch: Mapping[str, Any], _: int) -> dict[str, Tensor]:
        """Denoising errors (B,) at timesteps of any noise alike."""
        output, target, _, batch = self.denoise(batch, density=0.0)
        self._feed.clear()
        return {"error": (output - target).square().mean((1, 2, 3)), "timesteps": batch["timesteps"]}

    def denoise(
        self, batch: Mapping[str, Any], density: float | Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict]:
        """The denoiser's output and its target (B, C, h, w), the method's vectors, and the batch with its noise."""
        method, backbone = self.method, self.backbone
        moments, copies = self.moments(batch), method.copies
        latents = backbone.sample_latents(moments)
        timesteps, stage = (x.repeat(copies) for x in self.draw(len(latents) // copies, density))
        noise = torch.randn_like(latents[: len(latents) // copies]).repeat(copies, 1, 1, 1)
        noisy = backbone.add_noise(latents, noise, timesteps)
        made = {"latent": moments, "noisy": noisy, "timesteps": timesteps, "stage": stage, "maps": self._maps}
        batch = {**batch, **made}
        vectors = method.vectors(batch)
        batch["texts"] = texts = method.texts(batch["prompt"])
        named = {placeholder(a): value for a, value in vectors.items()}
        fuse = partial(method.fused, batch=batch)
        conditioning = self._feed.load(texts, named, stage, fuse=fuse)
        output = backbone.predict(noisy, timesteps, conditioning, **method.added(batch)).float()
        return output, backbone.target(latents, noise, timesteps), vectors, batch

    def moments(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, 2C, h, w) of the pictures, stored or encoded now."""
        return (batch["latent"] if "latent" in batch else self.backbone.moments(batch["pixels"])).float()

    def draw(self, count: int, density: float | Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and stages (B,): each sample's own, or of one stage for all where the method says so."""
        space = self.method.space
        alone = space.num_stages > 1 and not self.method.shared_stage
        rows, draws = (count, 1) if alone else (1, count)
        timesteps, stage = draw_timesteps(rows, draws, density, space, self.device)
        return timesteps.flatten(), stage.repeat_interleave(draws)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self._phases.groups(), self.lr, weight_decay=self.weight_decay)
        found = with_schedule(optimizer, self.warmup, self.max_steps, decay=0.0)
        self._phases.steer(found["lr_scheduler"]["scheduler"])
        return found

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
