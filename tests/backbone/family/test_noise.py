"""What is learned, and how latents are laid out."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler
from tiny import make_backbone, make_scheduler, make_vae

from escdiff.backbone.family import Diffusion, FlowMatching, Latents
from escdiff.support.errors import UserError

TIMES = torch.tensor([0, 250, 999])


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_is_the_backbones(pair, kind):
    backbone = make_backbone(scheduler=make_scheduler(kind))
    noise = Diffusion(backbone.scheduler)
    for name in ("add_noise", "target"):
        assert torch.equal(getattr(noise, name)(*pair, TIMES), getattr(backbone, name)(*pair, TIMES))


def test_flow_matching_is_the_schedulers(pair):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow = FlowMatching(scheduler)
    times = scheduler.timesteps[[0, 400, 999]]  # shifted
    torch.testing.assert_close(flow.add_noise(*pair, times), scheduler.scale_noise(pair[0], times, pair[1]))


def test_a_step_against_the_flow_gives_the_latents(pair):
    flow, times = FlowMatching(), torch.tensor([1.0, 400.0, 1000.0])
    noisy, velocity = flow.add_noise(*pair, times), flow.target(*pair, times)
    torch.testing.assert_close(noisy - (times / 1000).view(-1, 1, 1, 1) * velocity, pair[0])
    assert torch.equal(flow.add_noise(*pair, torch.zeros(3)), pair[0])


def test_packing_is_by_patches_with_channels_outermost():
    latents = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = Latents(packed=True).pack(latents)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 4].tolist() == latents[0, :, 2:4, 2:4].flatten().tolist()  # second row of patches, second one
    assert torch.equal(Latents(packed=True).unpack(tokens, 4, 6), latents)
    assert Latents().pack(latents) is latents and Latents().unpack(latents, 4, 6) is latents


def test_odd_sides_are_refused():
    with pytest.raises(UserError, match="of 5 x 6 were given; expected even sides"):
        Latents(packed=True).pack(torch.zeros(1, 4, 5, 6))


def test_latents_are_centred_as_the_vae_says():
    latents = torch.randn(2, 16, 4, 4)
    shifted = AutoencoderKL.from_config(make_vae(16).config, shift_factor=0.25)
    torch.testing.assert_close(Latents().normalize(shifted, latents), (latents - 0.25) * 0.5)
    torch.testing.assert_close(Latents().normalize(make_vae(16), latents), latents * 0.5)
    channelwise = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    mean, std = (torch.tensor(channelwise.config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(Latents().normalize(channelwise, latents), (latents - mean) / std)
    for vae in (shifted, channelwise):
        torch.testing.assert_close(Latents().restore(vae, Latents().normalize(vae, latents)), latents)
