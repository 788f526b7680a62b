"""Pure tensor functions on the conditioning grid."""

import pytest
import torch

from escdiff.conditioning import grid

B, L, S, T, D = 2, 3, 4, 5, 6


@pytest.fixture
def cells():
    return torch.randn(B, L, S, T, D, generator=torch.Generator().manual_seed(0))


def test_expand_repeats_only_axes_of_one(cells):
    small = cells[:, :1, :1]
    large = grid.expand(small, L, S)
    assert large.shape == cells.shape and torch.equal(large[:, 2, 3], small[:, 0, 0])
    assert grid.expand(cells, L, S).data_ptr() == cells.data_ptr()
    with pytest.raises(ValueError, match="does not expand"):
        grid.expand(cells, 16, S)


def test_pack_puts_layers_one_behind_the_other(cells):
    layers = cells[:, :, 0]
    packed = grid.pack(layers)
    assert packed.shape == (B, L * T, D) and torch.equal(packed[:, T : 2 * T], layers[:, 1])
    assert torch.equal(packed.unflatten(1, (L, T)), layers)


def test_blend_is_exact_at_both_ends(cells):
    other = torch.randn_like(cells)
    assert torch.equal(grid.blend(cells, other, 0.0), cells)
    assert torch.equal(grid.blend(cells, other, 1.0), other)
    per_layer = grid.blend(cells, other, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(per_layer[:, 0], cells[:, 0]) and torch.equal(per_layer[:, 1], other[:, 1])
    torch.testing.assert_close(per_layer[:, 2], (cells[:, 2] + other[:, 2]) / 2)
    weight = torch.zeros(L, S)
    weight[1, 2] = 1
    per_cell = grid.blend(cells, other, weight)
    assert torch.equal(per_cell[:, 1, 2], other[:, 1, 2]) and torch.equal(per_cell[:, 2], cells[:, 2])
    with pytest.raises(ValueError, match="expected"):
        grid.blend(cells, other, torch.zeros(B, L, S))
