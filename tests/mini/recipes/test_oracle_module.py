"""The judge's training: what a step teaches, and that it can be gone on with."""

import pytest
import torch

from escdiff.mini.data.lineups import labels_of, lineup
from escdiff.mini.recipes.oracle import OracleModule
from escdiff.mini.recipes.scene_oracle import SceneOracleModule


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return OracleModule(1e-3, 10)


@pytest.fixture
def batch():
    return torch.rand(16, 3, 64, 64) * 2 - 1, labels_of(lineup(0, 1))


def moved(module, batch):
    """Networks and embeddings whose weights have a gradient after a step."""
    module.zero_grad()
    module.training_step(batch, 0)["loss"].backward()
    return {name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_single_pictures_teach_the_networks_and_lineups_the_embeddings_alone(module, batch):
    pixels, labels = batch
    before = {name: value.clone() for name, value in module.oracle.readers.state_dict().items()}
    assert moved(module, batch) == {"identities"}
    assert all(torch.equal(before[name], value) for name, value in module.oracle.readers.state_dict().items())
    assert module.oracle.readers.training
    single = {name: values for name, values in labels.items() if not name.endswith("_id")}
    assert moved(module, (pixels, single)) == {"readers"}


@pytest.mark.parametrize("kind", [OracleModule, SceneOracleModule])
def test_a_checkpoint_is_loaded_again(kind):
    first, second = kind(1e-3, 10), kind(1e-3, 10)
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
