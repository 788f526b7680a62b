"""Training of the oracle (`escdiff.mini.oracle`) on line-ups, roughened so that it reads paintings too."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.backbone import mini_folder
from escdiff.data.pictures import expand
from escdiff.methods.losses import identity
from escdiff.mini.data.chunks import soften
from escdiff.mini.data.lineups import KINDS, PICTURES, LineUps, build_lineups
from escdiff.mini.oracle import CLASSES, VALUES, Oracle
from escdiff.mini.world.world import TWO_ALIKE, VERSION
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.optim.muon import Muon
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler

# 0.05 is far off for a colour. Patterns, their scale and slant, and gloss are learned last: they weigh more.
VALUE_WEIGHTS = {"params": 8, "rgb": 40, "rgb2": 20, "gloss": 12, "scale": 12, "angle": 12}
CLASS_WEIGHTS = {"pattern": 5.0}


def roughen(pixels: Tensor) -> Tensor:
    """Blur and noise of random strength: generated pictures are softer than renders."""
    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear", align_corners=False)
    share = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) * (torch.rand_like(pixels[:, :1, :1, :1]) < 0.6)
    noise = 0.06 * torch.rand_like(share) * torch.randn_like(pixels)
    return torch.lerp(pixels, blurred, share) + noise


def of_pattern(factors: dict[str, Tensor], patterns: Sequence[str]) -> Tensor:
    """(B,) bool: the pictures that have one of the patterns."""
    numbers = [CLASSES["pattern"].index(name) for name in patterns]
    return torch.isin(factors["pattern"], torch.tensor(numbers, device=factors["pattern"].device))


def swap_colors(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors with first and second colour exchanged."""
    names = {"color": "color2", "color2": "color", "rgb": "rgb2", "rgb2": "rgb"}
    return {name: factors[names.get(name, name)] for name in factors}


def sample_losses(out: dict[str, Tensor], factors: dict[str, Tensor]) -> Tensor:
    """Cross-entropies and squared errors summed over the heads, (B,); what a picture does not show counts nothing."""
    total = 0.0
    for name in (name for name in out if name in factors and name in (*CLASSES, *VALUES)):
        if name in CLASSES:
            loss = F.cross_entropy(out[name], factors[name], reduction="none", label_smoothing=0.05)
            loss = CLASS_WEIGHTS.get(name, 1.0) * loss
        else:
            loss = VALUE_WEIGHTS[name] * (out[name] - factors[name]).square().mean(-1)
        total = total + loss * factors.get(f"shows_{name}", torch.ones_like(loss))
    return total


class OracleModule(L.LightningModule):
    """Reads factors off pictures, and tells the instances of line-ups apart.

    See `sample_losses` and `escdiff.methods.losses.identity`.
    """

    progress = ("family",)

    def __init__(self, lr: float, max_steps: int, warmup: int = OptimConfig.warmup) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.oracle = Oracle().to(memory_format=torch.channels_last)  # in bfloat16 a third of the time on a CPU

    def training_step(self, batch: tuple[Tensor, dict[str, Tensor]], _: int) -> dict[str, Any]:
        pixels, factors = batch
        out = self.oracle(roughen(pixels).contiguous(memory_format=torch.channels_last))
        out = {name: values.float() for name, values in out.items()}
        straight, swapped = sample_losses(out, factors), sample_losses(out, swap_colors(factors))
        loss = torch.where(of_pattern(factors, TWO_ALIKE), torch.minimum(straight, swapped), straight).mean()
        same = {kind: identity(out[f"{kind}_id"], factors[f"{kind}_id"]) for kind in KINDS}
        logs = {
            name: (out[name].argmax(-1) == factors[name]).float().mean() for name in ("family", "pattern", "finish")
        }
        logs |= {name: self.error(out, factors, name) for name in ("params", "gloss", "scale", "angle")}
        logs |= {f"{kind}_contrast": value.detach() for kind, value in same.items()}
        return {"loss": loss + sum(same.values()), "logs": logs}

    @staticmethod
    def error(out: dict[str, Tensor], factors: dict[str, Tensor], name: str) -> Tensor:
        """Mean absolute error where the picture shows the value."""
        shown = factors[f"shows_{name}"]
        return (out[name].detach() - factors[name])[shown].abs().mean()

    def configure_optimizers(self):
        optimizer = Muon(self.oracle.parameters(), self.hparams.lr)
        return with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`; renders the line-ups that are not there yet.

    Raises:
        UserError: `init` has no such oracle.
    """
    module = OracleModule(config.optim.lr, config.trainer.max_steps, config.optim.warmup)
    if config.init:
        start_from(module.oracle, config.init, "oracle")
    folder = expand(config.data.source) / f"lineups-{VERSION}-{config.data.seed}"
    build_lineups(folder, config.data.num_samples // PICTURES, config.data.seed, workers=config.data.render_workers)
    soften(folder, reconstruction(mini_folder()))
    return judge_training(config, module, LineUps(folder), "oracle")


def judge_training(config: TrainConfig, module: L.LightningModule, data: Dataset, name: str) -> Training:
    """The training of a judge, `module.oracle`, on batches of `data`; its weights go to `name` in the export."""
    sampler = EpochSampler(len(data), config.data.batch_size, config.seed)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def finish(trained: L.LightningModule) -> None:
        trained.oracle.eval().save_pretrained(config.export_folder / name)

    return Training(module, loader, finish)


def reconstruction(folder: Path) -> Callable[[Tensor], Tensor]:
    """Pixels (B, 3, H, W) in [-1, 1] through the VAE in `folder` and back, by the mean of its latents."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval().requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def through(pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # its error is below one step of a byte
            return vae.decode(vae.encode(pixels).latent_dist.mean).sample.float()

    return through
