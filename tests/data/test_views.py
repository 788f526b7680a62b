import numpy as np
import pytest
import torch

from escdiff.data.views import appearance_view, box, patch_shuffle, recolor, reframe, reframe_both, shape_view, warp


@pytest.fixture
def pixels():
    return torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def coloured(pixels, rng):
    return shape_view(pixels, torch.ones_like(pixels[:1]), rng)[0]


def edges(pixels):
    grey = pixels.mean(0)
    return (grey[:, 1:] - grey[:, :-1]).abs().flatten()


@pytest.mark.parametrize("view", [coloured, appearance_view, recolor, reframe, warp, patch_shuffle])
def test_views_keep_size_and_range_and_follow_the_seed(pixels, view):
    first, second, third = (view(pixels, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == pixels.shape and first.isfinite().all()
    assert first.min() >= -1 and first.max() <= 1
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_recolor_moves_colours_and_keeps_edges(pixels):
    for seed in range(10):
        out = recolor(pixels * 0.5, np.random.default_rng(seed))
        assert (out - pixels * 0.5).abs().mean() > 0.05
        assert torch.corrcoef(torch.stack([edges(out), edges(pixels)]))[0, 1] > 0.3


def test_recolor_never_gives_the_hue_back():
    """An inversion on top of half a turn did."""
    orange = torch.tensor([0.8, 0.0, -0.6])[:, None, None].expand(3, 4, 4)
    chroma = orange - orange.mean(0)
    for seed in range(200):
        out = recolor(orange, np.random.default_rng(seed))
        turned = out - out.mean(0)
        cosine = (turned * chroma).sum() / (turned.norm() * chroma.norm() + 1e-6)
        assert cosine < 0.5, seed


def test_a_mask_goes_with_its_object():
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 24:50] = 1
    pixels = torch.where(mask > 0, 0.9, -0.9).expand(3, -1, -1)
    for seed in range(10):
        view, moved = reframe_both(pixels, mask, np.random.default_rng(seed))
        assert ((view[:1] > 0).float() - moved).abs().mean() < 0.01 and 0.05 < moved.mean() < 0.5
    assert not torch.equal(moved, mask)


def test_warping_bends_and_keeps_the_colours_there():
    pixels = torch.linspace(-1, 1, 64).expand(3, 64, 64).clone()
    warped = warp(pixels, np.random.default_rng(0))
    assert (warped - pixels).abs().mean() > 0.02 and warped.min() >= -1 and warped.max() <= 1
    assert (
        warp(torch.full((3, 40, 64), 0.7), np.random.default_rng(1)) - 0.7
    ).abs().max() < 1e-5  # nothing dark at the rim


def test_patches_come_from_the_object():
    pixels, mask = -torch.ones(3, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 16:48, 8:40] = 1
    pixels[:, mask[0] > 0] = 0.5
    assert box(mask, 64, 64) == (16, 48, 8, 40)
    assert (patch_shuffle(pixels, np.random.default_rng(0), mask) == 0.5).all()
    thin = torch.zeros(1, 64, 64)
    thin[:, 30, 5:60] = 1
    assert patch_shuffle(pixels, np.random.default_rng(0), thin).isfinite().all()
