"""Gated attention to patches: no change at first, diffusers' own U-Net with its gates, no trace behind."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from escdiff.backbone.adapters.gated import (
    GATES,
    Gated,
    is_gated,
    patches_argument,
    put_gates,
    set_beta,
    take_gates,
)  # fmt: skip
from escdiff.backbone.lora import read_lora
from escdiff.support.errors import UserError

WIDTH = 12  # of a patch


@pytest.fixture
def backbone(tiny_backbone):
    shared = copy.copy(tiny_backbone)
    shared.unet = copy.deepcopy(tiny_backbone.unet)
    return shared


def output(unet, patches=None):
    generator = torch.Generator().manual_seed(0)
    noisy, states = (torch.randn(2, *size, generator=generator) for size in ((8, 16, 16), (77, 32)))
    kwargs = None if patches is None else patches_argument(patches)
    with torch.no_grad():
        return unet(noisy, torch.tensor([100, 900]), states, cross_attention_kwargs=kwargs).sample


def opened(unet):
    """Gates as if trained."""
    torch.manual_seed(1)
    for name, parameter in unet.named_parameters():
        if name.endswith("alpha_attn"):
            torch.nn.init.normal_(parameter)


def test_closed_gates_and_rows_without_patches_are_stock_bit_for_bit(backbone):
    unet, patches = backbone.unet, torch.randn(2, 5, WIDTH)
    stock, keys, processors = output(unet), list(unet.state_dict()), dict(unet.attn_processors)
    weights = Gated(backbone, WIDTH)
    assert is_gated(unet) and torch.equal(output(unet, patches), stock) and torch.equal(output(unet), stock)
    opened(unet)
    patches[0] = 0
    both = output(unet, patches)
    assert torch.equal(both[0], stock[0]) and not torch.allclose(both[1], stock[1], atol=1e-4)
    set_beta(unet, 0.0)
    assert torch.equal(output(unet, patches), stock)
    weights.remove()
    assert list(unet.state_dict()) == keys and unet.attn_processors == processors and not is_gated(unet)


def test_it_is_diffusers_own_gated_unet(backbone, tmp_path):
    unet, patches = backbone.unet, torch.randn(2, 5, WIDTH)
    settings = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    theirs = UNet2DConditionModel(**settings | {"attention_type": "gated"})
    theirs.load_state_dict(unet.state_dict(), strict=False)
    weights = Gated(backbone, WIDTH)
    opened(unet)
    weights.save(tmp_path)
    state = read_lora(tmp_path / GATES)
    gates = {name: value for name, value in state.items() if ".fuser." in name}
    assert not theirs.load_state_dict(gates, strict=False).unexpected_keys
    theirs.position_net = copy.deepcopy(unet.position_net)
    assert torch.equal(output(unet, patches), output(theirs.eval(), patches))


def test_gates_come_back_from_their_file_and_only_into_their_unet(backbone, tmp_path):
    unet, patches = backbone.unet, torch.randn(2, 5, WIDTH)
    weights = Gated(backbone, WIDTH)
    opened(unet)
    expected = output(unet, patches)
    weights.save(tmp_path)
    state = read_lora(tmp_path / GATES)
    with pytest.raises(UserError, match="gated attention already"):
        put_gates(unet, state, "a file")
    weights.remove()
    put_gates(unet, state, "a file")
    assert torch.equal(output(unet, patches), expected)
    assert not any(p.requires_grad for p in unet.parameters())
    take_gates(unet)
    keys = list(unet.state_dict())
    with pytest.raises(UserError, match="another U-Net"):
        put_gates(unet, {name: value for name, value in state.items() if "mid_block" not in name}, "a file")
    with pytest.raises(UserError, match="another U-Net"):
        put_gates(unet, {**state, "up_blocks.9.fuser.alpha_attn": torch.zeros(())}, "a file")
    assert list(unet.state_dict()) == keys
