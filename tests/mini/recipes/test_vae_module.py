"""Training of the bundled model's VAE."""

from dataclasses import replace

import pytest
import torch

from escdiff.mini import parts as mini
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.recipes.vae import build
from escdiff.support.config.data import DataConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("vae")
    make_still_life(folder / "data", 16, StillLifeOptions(seed=1))
    return TrainConfig(
        export=str(folder / "out"), data=DataConfig(root=str(folder / "data"), batch_size=4),
        optim=OptimConfig(lr=1e-3, warmup=0), trainer=TrainerConfig(max_steps=2),
    )  # fmt: skip


def test_the_decoder_learns_and_the_encoder_stays(config, tmp_path):
    torch.manual_seed(0)
    trained = mini.make_vae()
    mini.save_half(trained, tmp_path / "vae")
    module, loader, *_ = build(replace(config, init=str(tmp_path)))
    before = {name: value.clone() for name, value in module.vae.state_dict().items()}
    torch.testing.assert_close(before, dict(trained.half().float().state_dict()))
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step(next(iter(loader)), 0)["loss"].backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in module.vae.state_dict().items() if (value != before[name]).any()}
    assert changed == {"decoder", "post_quant_conv"}


def test_without_weights_to_start_from_the_encoder_is_the_pictures_own_pca(config):
    module, loader, *_ = build(config)
    pixels = next(iter(loader))[0]
    with torch.no_grad():
        latents = module.vae.encode(pixels).latent_dist.mean
    channels = latents.transpose(0, 1).flatten(1)
    spread = channels.var(1)
    assert (spread > 0.1).all() and latents.abs().max() < 20
