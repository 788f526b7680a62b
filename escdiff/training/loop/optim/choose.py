"""The optimizer by its name in `optim.name`."""

from collections.abc import Sequence
from typing import Any

import torch

from escdiff.support.errors import UserError
from escdiff.support.optional import need
from escdiff.training.loop.optim.muon import Muon

MUON, ADAMW, ADAMW8 = NAMES = ("muon", "adamw", "adamw8bit")
BETAS = (0.9, 0.99)  # those that Muon has for vectors


def check_optimizer(name: str) -> None:
    """Refuse an optimizer that cannot be had, before anything is loaded.

    Raises:
        UserError: an unknown name, or bitsandbytes, which `adamw8bit` is from, is not installed.
    """
    if name not in NAMES:
        raise UserError(f"optim.name={name} given; expected one of {', '.join(NAMES)}")
    if name == ADAMW8:
        need("bitsandbytes", "optim.name=adamw8bit", "8bit")


def make_optimizer(
    name: str, groups: Sequence[dict[str, Any]], lr: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """`muon`; `adamw` for every parameter; or `adamw8bit`, the same with moments of one byte (Dettmers et al. 2022).

    Args:
        groups: of parameters, with their own rates and decays; `orthogonal` is for Muon alone.

    Raises:
        UserError: see `check_optimizer`; or `adamw8bit` on a CPU.
    """
    check_optimizer(name)
    if name == MUON:
        return Muon(groups, lr, weight_decay)
    plain = [{key: value for key, value in group.items() if key != "orthogonal"} for group in groups]
    if name == ADAMW:
        return torch.optim.AdamW(plain, lr, BETAS, weight_decay=weight_decay)
    if device.type == "cpu":
        raise UserError("optim.name=adamw8bit given on a CPU; expected a GPU, or optim.name=adamw")
    return need("bitsandbytes", "optim.name=adamw8bit", "8bit").optim.AdamW8bit(
        plain, lr, BETAS, weight_decay=weight_decay
    )
