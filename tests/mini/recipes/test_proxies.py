import numpy as np
import pytest
import torch
from torch import nn

from escdiff.mini.parts import make_scheduler
from escdiff.mini.recipes import proxies
from escdiff.mini.recipes.proxies import KINDS, RIVALS, TIMESTEPS, WordProxy, questions


class Listener(nn.Module):
    """Predicts the velocity, the better the nearer its text's state is to 0; `heard` says how much that counts."""

    def __init__(self, target, heard: float) -> None:
        super().__init__()
        self.unused, self.target, self.heard = nn.Parameter(torch.zeros(1)), target, heard

    def forward(self, noisy, timesteps, states):
        guess = self.target(noisy, timesteps) + self.heard * states.mean((1, 2))[:, None, None, None] + 0.1
        return type("Output", (), {"sample": guess})


@pytest.fixture(scope="module")
def proxy() -> WordProxy:
    # The right word's state is 0, a rival's 1: the proxy must find the first one, and only where it is heard.
    def states(texts: list[str]) -> torch.Tensor:
        return torch.tensor([0.0] + [1.0] * (len(texts) - 1))[:, None, None].expand(-1, 2, 3)

    return WordProxy(lambda pixels: nn.functional.avg_pool2d(pixels, 8), states, make_scheduler(), count=4)


def velocity(proxy: WordProxy):
    def target(noisy, timesteps):
        scheduler, count = proxy.scheduler, len(proxy.latents)
        every = scheduler.add_noise(proxy.latents, proxy.noise, timesteps[:1].expand(count))
        row = next(i for i in range(count) if torch.equal(every[i], noisy[0]))
        return scheduler.get_velocity(proxy.latents[row : row + 1], proxy.noise[row : row + 1], timesteps[:1])

    return target


def test_questions_differ_in_one_word_and_the_right_one_comes_first():
    factors, asked = questions(12)
    assert len(asked) == 12 * len(KINDS) and questions(12)[1] == asked
    for question in asked:
        f = factors[question.picture]
        assert len(set(question.texts)) == 1 + RIVALS
        right = {"family": f.shape.family, "pattern": f.material.pattern, "color": f.material.color}
        if question.kind in right:
            assert right[question.kind] in question.texts[0]
            assert all(len(text.split()) == len(question.texts[0].split()) for text in question.texts)


def test_a_network_that_hears_is_told_from_one_that_does_not(proxy):
    hears = proxy.measure(Listener(velocity(proxy), heard=0.5))
    assert set(hears) == {f"{kind}{what}_t{t}" for kind in KINDS for what in ("", "_margin") for t in TIMESTEPS}
    assert all(value == 1 for name, value in hears.items() if "margin" not in name)
    assert all(value > 50 for name, value in hears.items() if "margin" in name)
    deaf = proxy.measure(Listener(velocity(proxy), heard=0.0))
    assert all(abs(value) < 1e-3 for name, value in deaf.items() if "margin" in name)
    misled = proxy.measure(Listener(velocity(proxy), heard=-0.1))
    assert all(value == 0 for name, value in misled.items() if "margin" not in name)


def test_measuring_leaves_the_training_as_it_was(proxy):
    network = Listener(velocity(proxy), heard=0.5).train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = proxy.measure(network)
    assert torch.equal(torch.rand(3), expected) and network.training
    assert first == proxy.measure(network)


def test_renders_are_none_of_a_training_set():
    drawn = questions(4)[0]
    assert drawn != questions(4, seed=1)[0]
    assert proxies.STREAM not in range(3)  # data_prep's streams count splits
    assert np.all([f.material.pattern != "plain" for f in drawn])
