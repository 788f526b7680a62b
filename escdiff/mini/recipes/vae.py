"""The bundled model's VAE: an encoder set to PCA (see `pca_encoder`) and a decoder learned against it."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.mini import parts as mini
from escdiff.mini.data.arrays import StillLifeArrays
from escdiff.mini.data.swap_data import ensure_rendered
from escdiff.mini.recipes.pca import set_to_pca
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.optim.muon import Muon
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler

# Luma and chroma (BT.601); at equal weights a decoder leaves small colour patches grey.
TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
CROP = 64  # pixels


def reconstruction(output: Tensor, target: Tensor, chroma: float = 2.0) -> Tensor:
    """L1 + L2 in luma and chroma, chroma weighted by `chroma`; inputs (B, 3, H, W) in [-1, 1]."""
    weight = torch.tensor([1.0, chroma, chroma], device=output.device).view(3, 1, 1)
    error = torch.einsum("ij,bjhw->bihw", TO_YCC.to(output), output - target) * weight
    return error.abs().mean() + 2 * error.square().mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of (B, 3, H, W) in [-1, 1], the mean over pictures."""
    mse = (output.clamp(-1, 1) - target).square().mean((1, 2, 3)) / 4
    return (-10 * torch.log10(mse)).mean()


class Pictures(Dataset):
    """Batches of pixels (B, 3, H, W) in [-1, 1] and masks (B, 1, H, W)."""

    def __init__(self, arrays: StillLifeArrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        rows = [row for _, row in visits]
        return self.arrays.pixels(rows), self.arrays.masks(rows)


def crop_to_object(pixels: Tensor, masks: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A square of `size` pixels around a random point of each object, aligned to the VAE's 8-pixel blocks."""
    crops = []
    for picture, mask in zip(pixels, masks[:, 0], strict=True):
        points = torch.nonzero(mask)
        pick = points[torch.randint(len(points), (1,), generator=generator)[0]] if len(points) else points.new_zeros(2)
        y, x = (int(((c - size // 2) // 8 * 8).clamp(0, picture.shape[-1] - size)) for c in pick)
        crops.append(picture[:, y : y + size, x : x + size])
    return torch.stack(crops)


class VaeModule(L.LightningModule):
    """Crops around objects first (most of a picture is background), whole pictures for the last part of the run."""

    progress = ("psnr",)

    def __init__(self, lr: float, max_steps: int, warmup: int = OptimConfig.warmup, whole_from: float = 0.75) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vae = mini.make_vae()
        self.vae.encoder.requires_grad_(False)
        self.vae.quant_conv.requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> dict[str, Any]:
        pixels, masks = batch
        generator = torch.Generator().manual_seed(self.global_step)
        if self.global_step < self.hparams.whole_from * self.hparams.max_steps:
            pixels = crop_to_object(pixels, masks, CROP, generator)
        else:
            pixels = pixels[: max(1, len(pixels) // 4)]
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mean
            latents = latents + 0.02 * torch.randn(latents.shape, generator=generator).to(latents)
        output = self.vae.decode(latents).sample
        loss = reconstruction(output, pixels)
        return {"loss": loss, "logs": {"psnr": psnr(output.detach(), pixels)}}

    def configure_optimizers(self):
        learned = [p for p in self.vae.parameters() if p.requires_grad]
        optimizer = Muon(learned, self.hparams.lr, weight_decay=0.0)
        return with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`.

    Raises:
        UserError: `init` has no such VAE.
    """
    module = VaeModule(config.optim.lr, config.trainer.max_steps, config.optim.warmup)
    if config.init:  # its decoder learns on; the encoder stays, and with it all that was trained on its latents
        start_from(module.vae, config.init, "vae")
    ensure_rendered(config.data)
    pictures = Pictures(StillLifeArrays(config.data.source))
    if not config.init:
        set_to_pca(module.vae, pictures.arrays.pixels(slice(0, len(pictures), max(1, len(pictures) // 1500))))
    loader = DataLoader(
        pictures,
        batch_sampler=EpochSampler(len(pictures), config.data.batch_size, config.seed),
        collate_fn=lambda batch: batch,
    )

    def finish(trained: VaeModule) -> None:
        mini.save_half(trained.vae.eval(), config.export_folder / "vae")

    return Training(module, loader, finish)
