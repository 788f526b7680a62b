from copy import deepcopy

import torch
from torch import nn

from escdiff.training.loop.optim.muon import Muon, orthogonalise


def test_orthogonalise_keeps_directions_and_levels_their_sizes():
    torch.manual_seed(0)
    for shape in ((24, 60), (60, 24), (30, 30)):
        matrix = torch.randn(shape)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        levels = torch.diagonal(u.T @ orthogonalise(matrix) @ vh.T)
        large = s > 0.1 * s.max()
        assert ((levels[large] > 0.6) & (levels[large] < 1.3)).all()


def test_vectors_and_groups_set_apart_get_adam():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4, 3))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([{"params": ours, "orthogonal": False}], lr=0.1)
    adam = torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.99))
    for _ in range(3):
        gradients = [torch.randn_like(p) for p in ours]
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        muon.step()
        adam.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_badly_scaled_problem_is_solved_and_state_can_be_restored():
    torch.manual_seed(0)
    scales = torch.logspace(0, -2, 16)
    truth, inputs = torch.randn(8, 16), torch.randn(256, 16) * scales

    def train(layer, optimizer, steps):
        for _ in range(steps):
            loss = (layer(inputs) - inputs @ truth.T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    layer = nn.Linear(16, 8)
    optimizer = Muon(layer.parameters(), lr=0.05, weight_decay=0.0)
    first = train(layer, optimizer, 1)
    train(layer, optimizer, 199)
    copy = nn.Linear(16, 8)
    copy.load_state_dict(layer.state_dict())
    restored = Muon(copy.parameters(), lr=0.05, weight_decay=0.0)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    assert train(copy, restored, 10) == train(layer, optimizer, 10) < 0.1 * first
