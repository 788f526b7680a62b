"""`optim.name`: what each name is, and the sentences where one cannot be had."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from escdiff.cli.train import run
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError
from escdiff.training.loop.optim.choose import BETAS, check_optimizer, make_optimizer
from escdiff.training.loop.optim.muon import Muon

CPU = torch.device("cpu")


def layers():
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    groups = [
        {"params": [net.weight]}, {"params": [net.bias], "weight_decay": 0.0, "lr": 0.1, "orthogonal": False}
    ]  # fmt: skip
    return net, groups


def test_adamw_is_torchs_with_the_groups_own_rates():
    (net, groups), (same, _) = layers(), layers()
    ours = make_optimizer("adamw", groups, 0.01, 0.5, CPU)
    plain = torch.optim.AdamW(
        [{"params": [same.weight]}, {"params": [same.bias], "weight_decay": 0.0, "lr": 0.1}],
        0.01,
        BETAS,
        weight_decay=0.5,
    )
    for _ in range(3):
        for model, optimizer in ((net, ours), (same, plain)):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    assert torch.equal(net.weight, same.weight) and torch.equal(net.bias, same.bias)
    assert isinstance(make_optimizer("muon", layers()[1], 0.01, 0.0, CPU), Muon)


def test_bitsandbytes_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optim.name=adamw8bit needs .* bitsandbytes.*pip install 'escdiff\[8bit\]'"):
        check_optimizer("adamw8bit")
    with pytest.raises(UserError, match="muon, adamw, adamw8bit"):
        check_optimizer("sgd")


def test_its_arguments(monkeypatch):
    """A stand-in for bitsandbytes, which needs a GPU: it keeps what it is given."""
    given = lambda groups, lr, betas, weight_decay: (groups, lr, betas, weight_decay)  # noqa: E731
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=given)))
    with pytest.raises(UserError, match="on a CPU"):
        make_optimizer("adamw8bit", layers()[1], 0.01, 0.5, CPU)
    groups, lr, betas, decay = make_optimizer("adamw8bit", layers()[1], 0.01, 0.5, torch.device("cuda"))
    assert (lr, betas, decay) == (0.01, BETAS, 0.5) and [sorted(g) for g in groups] == [
        ["params"], ["lr", "params", "weight_decay"]
    ]  # fmt: skip


def test_recipes_that_have_their_own_refuse_another():
    values = compose("train", ["experiment=mini/vae", "optim.name=adamw"])
    with pytest.raises(UserError, match="recipe=vae"):
        run(values)
