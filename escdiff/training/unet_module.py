"""The bundled model's U-Net, trained on cached latents and captions (Rombach et al. 2022, eq. 3; v-prediction)."""

import shutil
from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.data.arrays import StillLifeArrays
from escdiff.data.latents import load_latents, vae_key
from escdiff.still_life.world import PATTERNS
from escdiff.training import mini
from escdiff.training.feeding import ensure_latents
from escdiff.training.muon import Muon
from escdiff.training.options import export_folder, own_device
from escdiff.training.sampling import EpochSampler

# How often a caption leaves something unsaid, so that the backbone knows what to do with part of a description.
HIDE = {(): 0.65, ("shape",): 0.1, ("appearance",): 0.15, ("shape", "appearance"): 0.1}
EMPTY = 0.1  # captions replaced by nothing, for classifier-free guidance


class CaptionedLatents(Dataset):
    """Batches of (moments (B, 2C, h, w) float16, token ids (B, 77))."""

    def __init__(self, arrays: StillLifeArrays, moments: Tensor, tokenizer, seed: int) -> None:
        self.arrays, self.moments, self.tokenizer, self.seed = arrays, moments, tokenizer, seed

    def __len__(self) -> int:
        return len(self.arrays)

    def text(self, epoch: int, row: int) -> str:
        rng = np.random.default_rng((self.seed, epoch, row))
        if rng.random() < EMPTY:
            return ""
        hidden = list(HIDE)[int(rng.choice(len(HIDE), p=list(HIDE.values())))]
        return self.arrays.caption(row, rng, hidden)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        texts = [self.text(epoch, row) for epoch, row in visits]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.moments[[row for _, row in visits]], ids


class PlainFirst(EpochSampler):
    """Batches of plain and gradient materials only until `plain_steps`, then of all.

    A shape is learned from its outline, and a pattern's contrasts hide the outline from a network that knows neither.
    """

    def __init__(self, arrays: StillLifeArrays, batch_size: int, seed: int, plain_steps: int) -> None:
        super().__init__(len(arrays), batch_size, seed)
        easy = [PATTERNS.index(name) for name in ("plain", "gradient")]
        self.plain, self.plain_steps = np.flatnonzero(np.isin(arrays.labels["pattern"], easy)), plain_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in super().__iter__():
            if self.step <= self.plain_steps and len(self.plain) >= self.batch_size:
                rng = np.random.default_rng((self.seed, 1, self.step, self.rank))
                batch = [(self.step, int(row)) for row in rng.choice(self.plain, self.batch_size, replace=False)]
            yield batch


def sample_timesteps(count: int, bias: float, generator: torch.Generator | None = None) -> Tensor:
    """Timestep indices 0..999 (count,), density proportional to t^bias: high noise decides shape and layout."""
    return (torch.rand(count, generator=generator) ** (1 / (1 + bias)) * 1000).long().clamp(max=999)


class UnetModule(L.LightningModule):
    """`text_encoder` is frozen and stays outside the module, so that no checkpoint or average holds it."""

    def __init__(
        self, text_encoder, lr: float, max_steps: int, warmup: int = 200, high_noise_bias: float = 1.0
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="text_encoder")
        self.unet, self.scheduler = mini.make_unet(), mini.make_scheduler()
        self._frozen = (text_encoder.requires_grad_(False).eval(),)  # a tuple hides it from nn.Module

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> dict[str, Tensor]:
        moments, ids = batch
        latents = DiagonalGaussianDistribution(moments.float()).sample()
        with torch.no_grad():
            states = self._frozen[0].to(self.device)(ids).last_hidden_state
        timesteps = sample_timesteps(len(latents), self.hparams.high_noise_bias).to(self.device)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        error = (self.unet(noisy, timesteps, states).sample.float() - target).square().mean((1, 2, 3))
        return {"loss": error.mean(), "error": error.detach(), "timesteps": timesteps}

    def configure_optimizers(self):
        optimizer = Muon(self.unet.parameters(), self.hparams.lr)
        return mini.with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps)


def build(config):
    """Module, loader and finish for `escdiff.training.run`; encodes the data's latents if they are not there yet."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = export_folder(config)
    vae = AutoencoderKL.from_pretrained(mini.part(folder, "vae"), torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(mini.part(folder, "text_encoder"), dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(mini.part(folder, "tokenizer"))
    key = vae_key(vae, mini.SIZE)
    ensure_latents(config.data.root, vae, lambda pixels: vae.quant_conv(vae.encoder(pixels)), key, own_device(config))
    arrays = StillLifeArrays(config.data.root)
    data = CaptionedLatents(arrays, load_latents(config.data.root, key), tokenizer, config.seed)
    module = UnetModule(
        text, config.optim.lr, config.trainer.max_steps, config.optim.warmup, config.loss.high_noise_bias
    )
    if config.init:
        module.unet.load_state_dict(mini.load_weights(UNet2DConditionModel, config.init, "unet"))
    plain_steps = int(config.data.plain_share * config.trainer.max_steps)
    sampler = PlainFirst(arrays, config.data.batch_size, config.seed, plain_steps)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=lambda batch: batch)

    def finish(trained: UnetModule) -> None:
        mini.save_half(trained.unet.eval(), folder / "unet")
        for name in ("vae", "text_encoder", "tokenizer", "clip"):
            if not (folder / name).is_dir():
                shutil.copytree(mini.part(folder, name), folder / name)
        parts = {"unet": trained.unet, "vae": vae, "text_encoder": text, "tokenizer": tokenizer}
        pipeline = StableDiffusionPipeline(
            **parts, scheduler=trained.scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipeline.save_config(folder)
        trained.scheduler.save_pretrained(folder / "scheduler")

    return module, loader, finish
