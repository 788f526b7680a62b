"""Every objective against a value computed by hand."""

import math

import torch

from escdiff.control import objectives


def maps(*rows):
    """(1, 1, 2, 2) of four numbers, or more maps of a sample."""
    return torch.tensor(rows, dtype=torch.float32).view(1, len(rows), 2, 2)


def test_excite_asks_for_the_weakest_map():
    loss = objectives.excite(maps([0.1, 0.7, 0.2, 0.0], [0.3, 0.1, 0.25, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([1 - 0.3]))


def test_sharpen_leaves_out_both_ends():
    probs = torch.tensor([0.5, 0.02, 0.03, 0.45]).view(1, 1, 1, 4)
    high = math.e / (1 + math.e)  # softmax of 2 and 3
    torch.testing.assert_close(objectives.sharpen(probs).flatten(), torch.tensor([0, 1 - high, high, 0]))


def test_smoothing_is_the_published_kernel():
    spot = torch.zeros(1, 1, 5, 5)
    spot[..., 2, 2] = 1
    edge = math.exp(-1.0)  # exp(-(1 / (2 * 0.5))^2)
    total = (1 + 2 * edge) ** 2
    found = objectives.smooth(spot)[0, 0, 1:4, 1:4] * total
    corner = edge * edge
    by_hand = torch.tensor([[corner, edge, corner], [edge, 1, edge], [corner, edge, corner]])
    torch.testing.assert_close(found, by_hand)


def test_contrast_is_nt_xent():
    # Unit vectors at 0, 60 and 90 degrees; the first two belong together.
    angles = torch.tensor([0.0, 60.0, 90.0]).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], -1)[None] * torch.tensor([1.0, 2.0, 3.0])[:, None]

    def pair(positive, negative):
        return -math.log(math.exp(positive / 0.5) / (math.exp(positive / 0.5) + math.exp(negative / 0.5)))

    # 0 and 60 degrees: cosine 0.5; 0 and 90: 0; 60 and 90: cos 30.
    by_hand = (pair(0.5, 0.0) + pair(0.5, math.cos(math.pi / 6))) / 2
    torch.testing.assert_close(objectives.contrast(vectors, [0, 0, 1], 0.5), torch.tensor([by_hand]))
    assert objectives.contrast(vectors, [0, 1, 2]).item() == 0  # no pair, nothing to say


def test_inside_is_the_share_of_the_box():
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    loss = objectives.inside(maps([1, 2, 1, 0], [0, 0, 2, 2]), torch.stack([mask, mask]))
    torch.testing.assert_close(loss, torch.tensor([(0.25**2 + 1) / 2]))


def test_like_sums_pixels_and_words_and_averages_heads():
    a, b = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    a[0, 0, 1, 2], b[0, 1, 0, 0] = 2.0, 1.0
    torch.testing.assert_close(objectives.like(a, b), torch.tensor([(4.0 + 1.0) / 2]))


def test_follow_compares_shapes():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    loss = objectives.follow(maps([0.2, 0.1, 0.0, 0.1]), mask)
    torch.testing.assert_close(loss, torch.tensor([(0.5**2 + 0.5**2) / 4]))
