import pytest
import torch

from escdiff.encoder.filters import AppearanceFilter, ShapeFilter, patch_weights
from escdiff.encoder.head import Head

N, W = 16, 24


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, N, W, generator=generator) for _ in range(2)]


@pytest.fixture
def mask():
    mask = torch.zeros(3, 1, 64, 64)
    mask[:, :, 10:50, 20:60] = 1
    return mask


def appearance(**options):
    torch.manual_seed(0)
    return AppearanceFilter(W, 2, N, 32, inner=32, **options).eval()


def shape(**options):
    torch.manual_seed(0)
    return ShapeFilter(W, 2, N, 32, inner=32, **options).eval()


def test_the_appearance_filter_does_not_see_the_order_of_patches(tokens):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = [t[:, order] for t in tokens]
    assert torch.allclose(appearance()(tokens), appearance()(shuffled), atol=1e-5)
    assert not torch.allclose(appearance(positions=True)(tokens), appearance(positions=True)(shuffled), atol=1e-3)


def test_the_shape_filter_sees_the_order_but_not_the_channel_statistics(tokens):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = [t[:, order] for t in tokens]
    recolored = [t * torch.linspace(0.5, 3, W) + torch.linspace(-4, 4, W) for t in tokens]
    assert not torch.allclose(shape()(tokens), shape()(shuffled), atol=1e-3)
    assert torch.allclose(shape(positions=False)(tokens), shape(positions=False)(shuffled), atol=1e-5)
    assert torch.allclose(shape()(tokens), shape()(recolored), atol=1e-3)
    assert not torch.allclose(shape(instance_norm=False)(tokens), shape(instance_norm=False)(recolored), atol=1e-2)


@pytest.mark.parametrize("build", [shape, appearance])
def test_patches_outside_the_mask_hardly_count(build, tokens, mask):
    weights = patch_weights(mask, tokens[0])
    outside = (weights < 0.02)[..., None]
    assert outside.any()
    changed = [torch.where(outside, t.roll(1, -1) + 0.5, t) for t in tokens]
    free = (build()(tokens) - build()(changed)).abs().mean()
    masked = (build()(tokens, mask) - build()(changed, mask)).abs().mean()
    assert masked < 0.35 * free


@pytest.mark.parametrize("build", [shape, appearance])
def test_a_batch_gives_what_one_by_one_gives(build, tokens, mask):
    whole = build()(tokens, mask)
    single = torch.cat([build()([t[i : i + 1] for t in tokens], mask[i : i + 1]) for i in range(3)])
    assert torch.allclose(whole, single, atol=1e-5)


def test_a_head_of_rank_zero_says_the_same_in_all_layers_and_stages():
    head = Head(8, 4, 2, 3, 5, rank=0)
    out = head(torch.randn(2, 8))
    assert out.shape == (2, 4, 2, 3, 5) and torch.equal(out, out[:, :1, :1].expand_as(out))
    out.sum().backward()
    assert head.base[-1].weight.grad.abs().sum() > 0
