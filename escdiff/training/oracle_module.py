"""Training of the oracle (`escdiff.still_life.oracle`) on renders, roughened so that it reads paintings too."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.data.arrays import StillLifeArrays
from escdiff.still_life.oracle import CLASSES, Oracle
from escdiff.still_life.world import TWO_ALIKE
from escdiff.training import mini
from escdiff.training.muon import Muon
from escdiff.training.options import export_folder
from escdiff.training.sampling import EpochSampler

VALUE_WEIGHTS = {"params": 4, "rgb": 40, "rgb2": 20, "gloss": 4}  # an error of 0.05 is far off for a colour


class LabelledPictures(Dataset):
    """Batches of pixels (B, 3, H, W) in [-1, 1] and their factors, a dict of (B,) classes and (B, n) values."""

    def __init__(self, arrays: StillLifeArrays) -> None:
        self.arrays = arrays
        values = [self._values(f) for f in arrays.factors]
        self.values = {name: np.array([v[name] for v in values], np.float32) for name in values[0]}

    @staticmethod
    def _values(factors) -> dict[str, tuple[float, ...]]:
        m = factors.material
        return {"params": factors.shape.params, "rgb": m.rgb, "rgb2": m.rgb2, "gloss": (m.gloss,)}

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, dict[str, Tensor]]:
        rows = [row for _, row in visits]
        factors = {name: torch.from_numpy(self.arrays.labels[name][rows]) for name in CLASSES}
        factors |= {name: torch.from_numpy(values[rows]) for name, values in self.values.items()}
        return self.arrays.pixels(rows), factors


def roughen(pixels: Tensor) -> Tensor:
    """Mirroring, blur and noise of random strength: generated pictures are softer than renders."""
    pixels = torch.where(torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5, pixels.flip(-1), pixels)
    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear", align_corners=False)
    share = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) * (torch.rand_like(pixels[:, :1, :1, :1]) < 0.6)
    noise = 0.06 * torch.rand_like(share) * torch.randn_like(pixels)
    return torch.lerp(pixels, blurred, share) + noise


def of_pattern(factors: dict[str, Tensor], patterns: Sequence[str]) -> Tensor:
    """Which pictures have one of the patterns, (B,) bool."""
    numbers = [CLASSES["pattern"].index(name) for name in patterns]
    return torch.isin(factors["pattern"], torch.tensor(numbers, device=factors["pattern"].device))


def swap_colors(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors with first and second colour exchanged."""
    names = {"color": "color2", "color2": "color", "rgb": "rgb2", "rgb2": "rgb"}
    return {name: factors[names.get(name, name)] for name in factors}


def sample_losses(out: dict[str, Tensor], factors: dict[str, Tensor]) -> Tensor:
    """Cross-entropies and squared errors summed over the heads, (B,); a plain pattern shows no second colour."""
    shown = ~of_pattern(factors, ("plain",))
    total = torch.zeros(len(shown), device=shown.device)
    for name, guess in out.items():
        if name in CLASSES:
            loss = F.cross_entropy(guess, factors[name], reduction="none", label_smoothing=0.05)
        else:
            loss = VALUE_WEIGHTS[name] * (guess - factors[name]).square().mean(-1)
        total = total + (loss * shown if name in ("color2", "rgb2") else loss)
    return total


class OracleModule(L.LightningModule):
    progress = ("family",)

    def __init__(self, lr: float, max_steps: int, warmup: int = 100) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.oracle = Oracle()

    def training_step(self, batch: tuple[Tensor, dict[str, Tensor]], _: int) -> dict[str, Any]:
        pixels, factors = batch
        out = self.oracle(roughen(pixels))
        straight, swapped = sample_losses(out, factors), sample_losses(out, swap_colors(factors))
        loss = torch.where(of_pattern(factors, TWO_ALIKE), torch.minimum(straight, swapped), straight).mean()
        names = ("family", "pattern", "finish", "background")
        right = {name: (out[name].argmax(-1) == factors[name]).float().mean() for name in names}
        return {"loss": loss, "logs": right}

    def configure_optimizers(self):
        optimizer = Muon(self.oracle.parameters(), self.hparams.lr)
        return mini.with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


def build(config):
    """Module, loader and finish for `escdiff.training.run`."""
    data = LabelledPictures(StillLifeArrays(config.data.root))
    module = OracleModule(config.optim.lr, config.trainer.max_steps, config.optim.warmup)
    if config.init:
        module.oracle.load_state_dict(Oracle.from_pretrained(Path(config.init).expanduser() / "oracle").state_dict())
    sampler = EpochSampler(len(data), config.data.batch_size, config.seed)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def finish(trained: OracleModule) -> None:
        trained.oracle.eval().save_pretrained(export_folder(config) / "oracle")

    return module, loader, finish
