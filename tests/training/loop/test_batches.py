"""Which pictures the bundled model's trainings see when."""

from itertools import islice

import numpy as np
import pytest
import torch

from escdiff.mini.recipes.oracle import CLASSES, of_pattern, sample_losses, swap_colors
from escdiff.mini.recipes.unet import PlainFirst, sample_timesteps
from escdiff.mini.world.world import PATTERNS, TWO_ALIKE


class Labels:
    """What the samplers read of `StillLifeArrays`."""

    def __init__(self, rows: int = 4000) -> None:
        rng = np.random.default_rng(0)
        self.labels = {"pattern": rng.integers(len(PATTERNS), size=rows)}

    def __len__(self) -> int:
        return len(self.labels["pattern"])


def test_plain_first_then_everything():
    arrays = Labels()
    sampler = PlainFirst(arrays, 32, seed=0, plain_steps=5)
    patterns = [{PATTERNS[arrays.labels["pattern"][row]] for _, row in batch} for batch in islice(sampler, 10)]
    assert all(kinds <= {"plain", "gradient"} for kinds in patterns[:5])
    assert all(len(kinds) > 5 for kinds in patterns[5:])


def test_a_resumed_sampler_goes_on_with_the_same_batches():
    straight = list(islice(PlainFirst(Labels(), 16, 3, 4), 8))
    again = PlainFirst(Labels(), 16, 3, 4)
    again.step = 3
    assert list(islice(again, 5)) == straight[3:]


def test_timesteps_lean_to_high_noise():
    torch.manual_seed(0)
    flat, leaning = (sample_timesteps(20_000, bias).float().mean().item() for bias in (0.0, 1.0))
    assert flat == pytest.approx(500, abs=10) and leaning == pytest.approx(667, abs=10)


def test_the_oracle_is_not_punished_for_the_order_of_two_alike_colors():
    count = len(CLASSES["color"])
    factors = {name: torch.zeros(2, dtype=torch.long) for name in CLASSES}
    factors["pattern"][:] = torch.tensor([CLASSES["pattern"].index("striped"), CLASSES["pattern"].index("dotted")])
    factors["color"], factors["color2"] = torch.tensor([3, 3]), torch.tensor([5, 5])
    factors |= {"rgb": torch.tensor([[1.0, 0, 0]] * 2), "rgb2": torch.tensor([[0, 0, 1.0]] * 2)}
    out = {
        "color": torch.eye(count)[[5, 5]] * 9, "color2": torch.eye(count)[[3, 3]] * 9,
        "rgb": factors["rgb2"], "rgb2": factors["rgb"],
    }  # fmt: skip
    assert of_pattern(factors, TWO_ALIKE).tolist() == [True, False]
    assert (sample_losses(out, swap_colors(factors)) < 2).all() and (sample_losses(out, factors) > 10).all()
