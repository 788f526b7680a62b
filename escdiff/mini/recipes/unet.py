"""The bundled model's U-Net, trained on cached latents and captions (Rombach et al. 2022, eq. 3; v-prediction)."""

import shutil
from collections.abc import Iterator
from functools import partial

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from escdiff.data.latent_cache import load_latents, vae_key
from escdiff.mini import parts as mini
from escdiff.mini.data.arrays import StillLifeArrays, array_pictures
from escdiff.mini.data.swap_data import ensure_rendered
from escdiff.mini.recipes.proxies import WordProxy
from escdiff.mini.world.world import PATTERNS
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig
from escdiff.training.loop.hardware import own_device
from escdiff.training.loop.initial import start_from
from escdiff.training.loop.optim.muon import Muon
from escdiff.training.loop.optim.schedule import with_schedule
from escdiff.training.loop.prepare_data import ensure_latents
from escdiff.training.loop.recipe import Training
from escdiff.training.loop.sample_order import EpochSampler

# How often a caption leaves something unsaid, so that the backbone knows what to do with part of a description.
HIDE = {(): 0.8, ("shape",): 0.06, ("appearance",): 0.08, ("shape", "appearance"): 0.06}
LEAST = 0.4  # of how full the other captions are: what a caption leaves out, no sample can teach
PROXY_STEPS = 250  # between two measurements of whether words are heard
DECAY = 0.95  # of the run, while the rate falls: at a constant one the right words' margins stand still (docs/log.md)
EMPTY = 0.1  # captions replaced by nothing, for classifier-free guidance


class CaptionedLatents(Dataset):
    """Batches of (moments (B, 2C, h, w) float16, token ids (B, T), share of the object in each latent (B, 1, h, w))."""

    def __init__(self, arrays: StillLifeArrays, moments: Tensor, tokenizer, seed: int) -> None:
        self.arrays, self.moments, self.tokenizer, self.seed = arrays, moments, tokenizer, seed

    def __len__(self) -> int:
        return len(self.arrays)

    def text(self, epoch: int, row: int) -> str:
        rng = np.random.default_rng((self.seed, epoch, row))
        if rng.random() < EMPTY:
            return ""
        hidden = list(HIDE)[int(rng.choice(len(HIDE), p=list(HIDE.values())))]
        return self.arrays.caption(row, rng, hidden, LEAST)

    def __getitems__(self, visits: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [row for _, row in visits]
        texts = [self.text(epoch, row) for epoch, row in visits]
        moments = self.moments[rows]
        objects = F.adaptive_avg_pool2d(self.arrays.masks(rows), moments.shape[-2:])
        return moments, _ids(self.tokenizer, texts), objects


def _ids(tokenizer, texts: list[str]) -> Tensor:
    """Token ids (B, T) as the U-Net is trained on them."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


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


def weighted_error(guess: Tensor, target: Tensor, objects: Tensor, weight: float) -> Tensor:
    """Mean squared error (B,) whose positions count `weight` times on the object; plain backgrounds are soon learned.

    Args:
        guess, target: (B, C, h, w).
        objects: (B, 1, h, w), the object's share of each position; all zeros weigh alike.
        weight: 1 weighs all positions alike.
    """
    weights = 1 + (weight - 1) * objects
    weights = weights / weights.mean((1, 2, 3), keepdim=True)
    return ((guess - target).square() * weights).mean((1, 2, 3))


class UnetModule(L.LightningModule):
    """`text_encoder` is frozen and stays outside the module, so that no checkpoint or average holds it."""

    def __init__(
        self, text_encoder, lr: float, max_steps: int, warmup: int = OptimConfig.warmup,
        high_noise_bias: float = LossConfig.high_noise_bias, object_weight: float = LossConfig.object_weight,
        proxy: WordProxy | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["text_encoder", "proxy"])
        self.proxy = proxy
        self.unet, self.scheduler = mini.make_unet(), mini.make_scheduler()
        self._frozen = (text_encoder.requires_grad_(False).eval(),)  # a tuple hides it from nn.Module

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> dict[str, Tensor]:
        moments, ids, objects = batch
        latents = DiagonalGaussianDistribution(moments.float()).sample()
        with torch.no_grad():
            states = self._frozen[0].to(self.device)(ids).last_hidden_state
        timesteps = sample_timesteps(len(latents), self.hparams.high_noise_bias).to(self.device)
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        guess = self.unet(noisy, timesteps, states).sample.float()
        error = weighted_error(guess, target, objects, self.hparams.object_weight)
        logs = {}
        if self.proxy is not None and self.global_step % PROXY_STEPS == 0:
            logs = {f"word/{name}": value for name, value in self.proxy.measure(self.unet).items()}
        return {"loss": error.mean(), "error": error.detach(), "timesteps": timesteps, "logs": logs}

    def configure_optimizers(self):
        optimizer = Muon(self.unet.parameters(), self.hparams.lr)
        return with_schedule(optimizer, self.hparams.warmup, self.hparams.max_steps, DECAY)


def build(config: TrainConfig) -> Training:
    """The training for `training.loop.run`; encodes the data's latents if they are not there yet.

    Raises:
        UserError: `init` has no such U-Net.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, root = config.export_folder, config.data.source
    vae = AutoencoderKL.from_pretrained(mini.part(folder, "vae"), torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(mini.part(folder, "text_encoder"), dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(mini.part(folder, "tokenizer"))
    proxy = WordProxy(
        lambda pixels: vae.encode(pixels).latent_dist.mode(),
        lambda texts: text(_ids(tokenizer, texts)).last_hidden_state,
        mini.make_scheduler(),
    )
    optim, loss = config.optim, config.loss
    module = UnetModule(
        text, optim.lr, config.trainer.max_steps, optim.warmup, loss.high_noise_bias, loss.object_weight, proxy
    )
    if config.init:
        start_from(module.unet, config.init, "unet")
    key = vae_key(vae, mini.SIZE)
    ensure_rendered(config.data)
    moments, pictures = lambda pixels: vae.quant_conv(vae.encoder(pixels)), partial(array_pictures, root)
    ensure_latents(root, vae, moments, key, own_device(config.trainer), pictures)
    arrays = StillLifeArrays(root)
    data = CaptionedLatents(arrays, load_latents(root, key), tokenizer, config.seed)
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

    return Training(module, loader, finish)
