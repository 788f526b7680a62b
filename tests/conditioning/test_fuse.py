"""The placement behind the text encoder: which tokens move, how far, and that the others do not."""

import torch

from escdiff.conditioning.fuse import Fuse, Fusion, fuse_at, fuse_grid


def test_fuses_the_named_tokens_and_no_others():
    torch.manual_seed(0)
    fuse, states, embeddings = Fuse(8, 5), torch.randn(3, 7, 8), torch.randn(2, 5)
    rows, positions = torch.tensor([0, 2]), torch.tensor([4, 1])
    out = fuse_at(states, fuse, rows, positions, embeddings, 1.0)
    joined = torch.cat([states[2, 1], embeddings[1]])[None]
    middle = fuse.join(joined) + states[2, 1]
    assert torch.allclose(out[2, 1], fuse.norm(fuse.refine(middle) + middle)[0], atol=1e-6)  # LN(MLP2(MLP1[h;e] + h))
    moved = (out != states).any(-1)
    assert moved.nonzero().tolist() == [[0, 4], [2, 1]]
    assert torch.equal(fuse_at(states, fuse, rows, positions, embeddings, 0.0), states)
    assert torch.equal(fuse_at(states, fuse, rows[:0], positions[:0], embeddings[:0], 1.0), states)
    assert fuse.sizes == (8, 5)


def test_a_grid_has_as_many_cells_as_its_shares_and_each_placeholder_its_own_embedding():
    torch.manual_seed(0)
    fuse, grid = Fuse(8, 5), torch.randn(2, 1, 1, 7, 8)
    one = Fusion(0, torch.randn(1, 5), torch.tensor([[[1.0, 0.0]]]))
    two = Fusion(1, torch.randn(2, 5), torch.tensor([[[0.5, 0.5]]]))
    out = fuse_grid(grid, [[("<mug>", 2)], [("<dog>", 3), ("<cat>", 6)]], {"<mug>": [one], "<dog>": [two]}, fuse)
    assert out.shape == (2, 1, 2, 7, 8)
    assert torch.equal(out[0, :, 1], grid[0, :, 0])  # the stage that reads the plain words
    assert torch.allclose(out[0, 0, 0, 2], fuse(grid[0, 0, 0, 2:3], one.embedding)[0], atol=1e-6)
    half = torch.lerp(grid[1, 0, 0, 4], fuse(grid[1, 0, 0, 4:5], two.embedding[1:])[0], 0.5)
    assert torch.allclose(out[1, 0, 0, 4], half, atol=1e-6) and torch.allclose(out[1, 0, 0], out[1, 0, 1], atol=1e-6)
    assert torch.equal(out[1, 0, 0, [0, 1, 2, 3, 5, 6]], grid[1, 0, 0, [0, 1, 2, 3, 5, 6]])
    assert fuse_grid(grid, [[], []], {"<mug>": [one]}, fuse) is grid
