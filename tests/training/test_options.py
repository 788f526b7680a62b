from types import SimpleNamespace

import pytest
import torch

from escdiff.training.options import own_device


@pytest.mark.parametrize(
    ("accelerator", "devices", "rank", "expected"),
    [
        ("cpu", 1, None, "cpu"),
        ("gpu", 1, None, "cuda:0"),
        ("auto", "auto", "3", "cuda:3"),
        ("gpu", [2, 5], "1", "cuda:5"),
        ("gpu", "4,6", None, "cuda:4"),
    ],
)
def test_own_device(monkeypatch, accelerator, devices, rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    config = SimpleNamespace(trainer=SimpleNamespace(accelerator=accelerator, devices=devices))
    assert own_device(config) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device(config) == "cpu"
