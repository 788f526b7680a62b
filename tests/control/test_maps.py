"""Attention maps read by hooks: the U-Net stays stock, packed prompts and checkpointing are understood."""

import copy

import pytest
import tiny
import torch
from call import hooks
from diffusers.models.attention_processor import AttnProcessor

from escdiff.conditioning import ConditioningSpace, bind
from escdiff.conditioning.attention import default_factor, factors, layers_at
from escdiff.conditioning.grid import pack
from escdiff.control.maps import AttentionMaps, choose
from escdiff.support.errors import UserError


@pytest.fixture
def unet(tiny_unet):
    return copy.deepcopy(tiny_unet)


def inputs(height=16, width=16, batch=2, cells=1):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, tiny.LATENT_CHANNELS, height, width, generator=generator)
    return latents, torch.tensor(500), torch.randn(batch, cells, 77, tiny.WIDTH, generator=generator)


def run(unet, latents, timestep, states):
    return unet(latents, timestep, encoder_hidden_states=states, return_dict=False)[0]


def test_layers_are_named_by_how_much_smaller_their_maps_are(unet):
    known = factors(unet)
    assert list(known.values()) == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]  # Stable Diffusion's 16
    sd = copy.copy(unet)
    for size, factor in ((64, 4), (96, 4), (16, 1), (8, 1)):
        sd.register_to_config(sample_size=size)
        assert default_factor(sd) == factor
    assert layers_at(unet, 8) == ("mid_block.attentions.0.transformer_blocks.0.attn2",)
    assert set(factors(tiny.make_unet_xl()).values()) == {2, 4}
    with pytest.raises(UserError, match=r"factor=3 .* 1, 2, 4, 8"):
        layers_at(unet, 3)


@torch.no_grad()
def test_the_output_stays_and_maps_are_what_the_slow_processor_computes(unet):
    latents, timestep, states = inputs(16, 24)
    stock, before = run(unet, latents, timestep, states[:, 0]), hooks(unet)
    with AttentionMaps(unet, 2) as maps:
        assert torch.equal(run(unet, latents, timestep, states[:, 0]), stock)
        mine = {name: maps.layer(name) for name in maps.layers}
        average, chosen = maps.average(), maps.of([[1, 4], [2, 76]])
    assert hooks(unet) == before and average.shape == (2, 8, 12, 77) and chosen.shape == (2, 2, 8, 12)
    torch.testing.assert_close(chosen[1, 1], average[1, :, :, 76])
    torch.testing.assert_close(choose(average, [[1], [2]])[1, 0], average[1, :, :, 2])

    class Spy(AttnProcessor):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def __call__(self, attn, *args, **kwargs):
            stock = attn.get_attention_scores
            attn.get_attention_scores = lambda *a: seen.setdefault(self.name, stock(*a))
            try:
                return super().__call__(attn, *args, **kwargs)
            finally:
                del attn.get_attention_scores

    seen = {}
    unet.set_attn_processor({name: Spy(name.removesuffix(".processor")) for name in unet.attn_processors})
    run(unet, latents, timestep, states[:, 0])
    for name, probs in mine.items():
        torch.testing.assert_close(probs.flatten(0, 1), seen[name], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_each_bound_layer_is_seen_with_its_own_cell(unet):
    latents, timestep, states = inputs(cells=16)
    space = ConditioningSpace.p_plus(unet)
    first = space.cells[0][0]  # it runs before any other can differ
    with AttentionMaps(unet, [first]) as maps, bind(unet, space):
        run(unet, latents, timestep, pack(states))
        packed = maps.layer(first)
        run(unet, latents, timestep, states[:, 0])
        assert torch.equal(maps.layer(first), packed)
        run(unet, latents, timestep, states[:, 1])
        assert not torch.equal(maps.layer(first), packed)


@pytest.mark.parametrize("processor", ["fast", "slow"])
def test_gradients_are_those_without_checkpointing(unet, processor):
    if processor == "slow":
        unet.set_attn_processor(AttnProcessor())
    latents, timestep, states = inputs()

    def gradient():
        x = latents.clone().requires_grad_(True)
        with AttentionMaps(unet) as maps:
            run(unet, x, timestep, states[:, 0])
            seen = [id(part) for part in maps._seen.values()]
            found = torch.autograd.grad(maps.of([[3], [3]]).square().sum(), x)[0]
            assert [id(part) for part in maps._seen.values()] == seen  # nothing is read again on the way back
        return found

    plain = gradient()
    unet.enable_gradient_checkpointing()
    assert torch.equal(gradient(), plain) and plain.abs().max() > 0


@torch.no_grad()
def test_a_lora_is_in_the_maps(unet):
    from peft import LoraConfig

    latents, timestep, states = inputs()
    with AttentionMaps(unet) as maps:
        run(unet, latents, timestep, states[:, 0])
        plain = maps.average()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    with AttentionMaps(unet) as maps:
        run(unet, latents, timestep, states[:, 0])
        assert not torch.allclose(maps.average(), plain, atol=1e-4)
