"""The regularised inversion of pix2pix-zero: its losses by hand and against diffusers' own, and what it does."""

import copy

import diffusers
import pytest
import tiny
import torch
from call import make_pipeline

from escdiff.control.inversion import invert, noise_of
from escdiff.control.whitening import Whitening, auto_correlation, divergence


@pytest.fixture(scope="module", params=["sd", "sd21"])
def backbone(request, tiny_backbone):
    return tiny.copied(tiny_backbone) if request.param == "sd" else tiny.make_sd21()


@pytest.fixture
def three(monkeypatch):
    """Every shift is three pixels."""
    monkeypatch.setattr(torch, "randint", lambda *args, **options: torch.tensor(3))


def test_losses_by_hand(three):
    noise = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    expected, level = 0.0, noise[0, 0]
    for side in (16, 8):
        rows = sum((level[y] * level[(y - 3) % side]).sum() for y in range(side)) / side**2
        columns = sum((level[:, x] * level[:, (x - 3) % side]).sum() for x in range(side)) / side**2
        expected += rows**2 + columns**2
        level = level.reshape(side // 2, 2, side // 2, 2).mean((1, 3))
    torch.testing.assert_close(auto_correlation(noise), expected)
    mean, variance = noise.mean(), ((noise - noise.mean()) ** 2).sum() / 255
    torch.testing.assert_close(divergence(noise), variance + mean**2 - 1 - torch.log(variance + 1e-7))


def test_one_prediction_equals_diffusers(backbone, three):
    kind = getattr(diffusers, "StableDiffusionPix2PixZeroPipeline", None)
    if kind is None:
        pytest.skip("this diffusers has no StableDiffusionPix2PixZeroPipeline")
    missing = dict.fromkeys(("caption_generator", "caption_processor", "inverse_scheduler"))
    oracle = make_pipeline(backbone, kind, unet=copy.deepcopy(backbone.unet), **missing)
    oracle.inverse_scheduler = diffusers.DDIMInverseScheduler.from_config(backbone.scheduler.config)
    output, latents, timestep = torch.randn(1, 8, 16, 16), torch.randn(1, 8, 16, 16), torch.tensor(501)
    ours = Whitening(rounds=2, shifts=3).apply(
        output, lambda x: noise_of(oracle.inverse_scheduler, timestep, latents, x), torch.Generator()
    )
    theirs = output
    for _ in range(2):
        for loss, size, times in ((oracle.auto_corr_loss, 20.0 / 3, 3), (oracle.kl_divergence, 20.0, 1)):
            for _ in range(times):
                moved = theirs.clone().requires_grad_(True)
                loss(oracle.get_epsilon(moved, latents, timestep)).backward()
                theirs = theirs - size * moved.grad
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - output).abs().max() > 0.01


def test_correlated_noise_becomes_less_so_and_standard():
    noise = torch.nn.functional.avg_pool2d(torch.randn(1, 2, 35, 35), 4, stride=1)
    white = Whitening(rounds=20, correlation=200.0).apply(noise, lambda x: x, torch.Generator().manual_seed(0))
    before, after = (
        torch.stack([auto_correlation(x / x.std(), torch.Generator().manual_seed(seed)) for seed in range(8)]).mean()
        for x in (noise, white)
    )
    assert after < 0.8 * before and divergence(white) < 0.5 * divergence(noise)


def test_no_rounds_is_plain_inversion_and_a_seed_comes_again(backbone):
    pipeline, picture = make_pipeline(backbone), torch.zeros(1, 3, 128, 128)
    picture[..., 40:90, 40:90] = 1.0
    plain, none, white, again = (
        invert(pipeline, picture, "a red mug", steps=3, rounds=1, whitening=how)
        for how in (None, Whitening(rounds=0), Whitening(rounds=1), Whitening(rounds=1))
    )
    assert torch.equal(plain.start, none.start) and not torch.equal(plain.start, white.start)
    assert torch.equal(again.start, white.start)
