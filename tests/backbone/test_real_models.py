"""Stable Diffusion's real configurations with random weights: grid, binding and forward pass. Gigabytes: slow."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import AutoConfig, CLIPTextModel

from escdiff.backbone.identify import ARCHITECTURES
from escdiff.conditioning import ConditioningSpace, PromptEncoder, bind
from escdiff.conditioning.grid import expand, pack_stages
from escdiff.mini.parts import make_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_grid_binding_and_forward(name):
    folder = ARCHITECTURES / name
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")).eval()
        text = CLIPTextModel(AutoConfig.from_pretrained(folder / "text_encoder")).eval()
        encoder, space = PromptEncoder(make_tokenizer(), text), ConditioningSpace.p_plus(unet)
        latents, timestep = torch.randn(1, 4, 16, 16), torch.tensor([500])
        word = encoder.word_embedding("mug").expand(1, 16, 1, 1, -1)
        plain = encoder.encode(["a photo of a mug"])
        stock = unet(latents, timestep, encoder_hidden_states=plain[:, 0, 0]).sample
        with bind(unet, space):
            same = unet(latents, timestep, encoder_hidden_states=pack_stages(expand(plain, 16, 1))).sample
            grid = encoder.encode(["a photo of a <shape>"], {"<shape>": word + 0.01 * torch.randn(1, 16, 1, 1, 1)})
            other = unet(latents, timestep, encoder_hidden_states=pack_stages(grid)).sample
    assert torch.equal(same, stock) and torch.isfinite(other).all() and not torch.equal(other, stock)
    assert grid.shape == (1, 16, 1, 77, unet.config.cross_attention_dim)
