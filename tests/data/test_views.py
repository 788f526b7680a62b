import numpy as np
import pytest
import torch

from escdiff.data import prompts
from escdiff.data.views import appearance_view, box, patch_shuffle, recolor, reframe, shape_view, warp
from escdiff.still_life import world


@pytest.fixture
def pixels():
    return torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def edges(pixels):
    grey = pixels.mean(0)
    return (grey[:, 1:] - grey[:, :-1]).abs().flatten()


@pytest.mark.parametrize("view", [shape_view, appearance_view, recolor, reframe, warp, patch_shuffle])
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


def test_patches_come_from_the_object():
    pixels, mask = -torch.ones(3, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 16:48, 8:40] = 1
    pixels[:, mask[0] > 0] = 0.5
    assert box(mask, 64, 64) == (16, 48, 8, 40)
    assert (patch_shuffle(pixels, np.random.default_rng(0), mask) == 0.5).all()
    thin = torch.zeros(1, 64, 64)
    thin[:, 30, 5:60] = 1
    assert patch_shuffle(pixels, np.random.default_rng(0), thin).isfinite().all()


def test_prompts_never_say_what_a_placeholder_stands_for():
    rng = np.random.default_rng(0)
    for _ in range(200):
        factors = world.sample_factors(rng)
        material, family = factors.material, factors.shape.family
        both = prompts.still_life_prompt(factors, prompts.BOTH, rng).split(" on a")[0]
        assert prompts.uses(both, "shape") and prompts.uses(both, "appearance")
        assert family not in both and material.color not in both.split("colored")[0].split()
        shape = prompts.still_life_prompt(factors, prompts.SHAPE_ONLY, rng).split(" on a")[0]
        assert "<shape>" in shape and "<appearance>" not in shape
        assert material.color in shape and family not in shape.split()
        look = prompts.still_life_prompt(factors, prompts.APPEARANCE_ONLY, rng).split(" on a")[0]
        assert "<appearance>" in look and "<shape>" not in look
        assert family in look.split() and material.color not in look.split()


def test_photo_prompts_say_at_most_the_category():
    rng = np.random.default_rng(0)
    assert "vase" in prompts.photo_prompt("vase", prompts.APPEARANCE_ONLY, rng)
    assert "<shape>" in prompts.photo_prompt(None, prompts.APPEARANCE_ONLY, rng)
    assert "vase" not in prompts.photo_prompt("vase", prompts.BOTH, rng)
