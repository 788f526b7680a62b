"""Every loss against a value computed by hand, and its promises."""

import math

import pytest
import torch

from escdiff.methods import losses


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_denoising_is_the_mean_square():
    pred, target = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1)
    torch.testing.assert_close(losses.denoising(pred, target), (pred - target).square().mean())
    weight = torch.tensor([0.0, 1.0, 2.0])
    per_sample = (pred - target).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.denoising(pred, target, weight), (per_sample * weight).mean())


def test_denoising_counts_the_mask_only():
    pred, target = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :32], mask[1, :, :, :16] = 1, 1
    expected = ((pred - target)[0, :, :4].square().mean() + (pred - target)[1, :, :, :2].square().mean()) / 2
    torch.testing.assert_close(losses.denoising(pred, target, mask=mask), expected)
    everything = losses.denoising(pred, target, mask=torch.ones(2, 1, 8, 8))
    torch.testing.assert_close(everything, losses.denoising(pred, target))
    assert losses.denoising(pred, target, mask=torch.zeros(2, 1, 8, 8)) == 0


def test_half_precision_is_summed_in_full():
    pred = torch.full((1, 4, 64, 64), 300.0, dtype=torch.float16)
    assert losses.denoising(pred, -pred).item() == 600.0**2


def test_invariance_wants_agreement_and_spread():
    wide = 3 * normal(64, 5)
    assert losses.invariance(wide, wide) == 0
    collapsed = torch.ones(64, 5, requires_grad=True)
    loss = losses.invariance(collapsed, collapsed)
    assert loss.item() == pytest.approx(0.99, abs=1e-3)  # hinge at standard deviation 0.01 = sqrt(EPSILON)
    loss.backward()
    assert torch.isfinite(collapsed.grad).all()
    torch.testing.assert_close(losses.invariance(wide, wide + 2), torch.tensor(4.0))
    assert losses.invariance(wide[:1], wide[:1] + 1) == 1  # one sample has no spread


def test_independence_sees_shared_information_at_any_scale():
    a, b = normal(4096, 6), normal(4096, 3, seed=1)
    assert losses.independence(a, b) < 2 / 4096
    assert losses.independence(a, 0.5 * a) > 0.99 / 6
    torch.testing.assert_close(losses.independence(a, 100 * a), losses.independence(a, a), rtol=1e-3, atol=0)
    assert losses.independence(a[:1], b[:1]) == 0
    constant = torch.ones(8, 2, requires_grad=True)
    losses.independence(constant, b[:8]).backward()
    assert torch.isfinite(constant.grad).all()


def test_residual_l2():
    assert losses.residual_l2(torch.tensor([[3.0, 4.0]])) == 12.5


def test_density_is_low_at_words_and_pulls_towards_them():
    words = normal(50, 8)
    at_words, off = losses.density(words, words, 0.5), losses.density(words + 3, words, 0.5)
    assert at_words < off
    by_hand = -torch.log(torch.exp(-(words[0] - words).square().sum(1) / (2 * 0.5**2)).mean())
    torch.testing.assert_close(losses.density(words[0], words, 0.5), by_hand)
    vector = (words[0] + 0.1).requires_grad_()
    losses.density(vector, words, 0.2).backward()
    assert torch.dot(vector.grad, vector.detach() - words[0]) > 0
    assert losses.density(words.view(5, 2, 5, 8), words, 0.5) == pytest.approx(at_words.item())


def test_the_identity_loss_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [9.0, 9.0]])
    instances = torch.tensor([0, 0, 1, -1])
    # A picture alone has no partner; of the pair, each against the other two at temperature 1.
    e = math.exp
    first, second = -math.log(e(0.6) / (e(0.6) + e(0.0))), -math.log(e(0.6) / (e(0.6) + e(0.8)))
    assert losses.identity(vectors, instances, 1.0).item() == pytest.approx((first + second) / 2)


def test_the_identity_loss_of_a_batch_without_pairs_is_zero_and_can_be_learned_from():
    vectors = torch.eye(3, requires_grad=True)
    for instances in ([-1, -1, -1], [0, 1, 2]):
        loss = losses.identity(vectors, torch.tensor(instances))
        loss.backward()
        assert loss == 0 and vectors.grad.isfinite().all()
