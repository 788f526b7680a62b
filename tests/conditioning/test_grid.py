"""Pure tensor functions on the conditioning grid."""

import pytest
import torch

from escdiff.conditioning import grid
from escdiff.conditioning.header import Marks, cells_of, header_rows, is_ours, read_masks, read_picture, split

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
    assert packed.shape == (B, L * T + header_rows(T, D), D) and torch.equal(packed[:, T : 2 * T], layers[:, 1])
    assert torch.equal(packed[:, : L * T].unflatten(1, (L, T)), layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_header_says_whose_it_is_and_what_is_true_of_each_row(cells, dtype):
    masks, picture = torch.randint(2, (B, 2, T)).float(), torch.arange(B) % 3.0
    packed = grid.pack_stages(cells, Marks(masks, picture)).to(dtype)
    assert is_ours(packed, L, S, T)
    assert not is_ours(packed, S, L, T) and not is_ours(packed[:, :-1], L, S, T)
    assert not is_ours(torch.randn_like(packed), L, S, T)
    assert torch.equal(read_masks(packed, T).float(), masks) and torch.equal(read_picture(packed, T).float(), picture)
    assert not read_masks(grid.pack_stages(cells), T).any()


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


def test_a_packed_conditioning_is_told_from_other_states():
    packed = grid.pack_stages(torch.randn(2, 3, 2, 5, 40))
    cells, header = split(packed)
    assert cells.shape == (2, 30, 40) and torch.equal(torch.cat([cells, header], 1), packed)
    assert cells_of(header) == (3, 2)
    others = torch.randn(2, 31, 40)
    assert split(others)[0] is others and split(others)[1] is None
