"""The judge's training: what a step teaches, and that it can be gone on with."""

import pytest
import torch

from escdiff.mini.data.lineups import labels_of, lineup
from escdiff.mini.recipes import oracle
from escdiff.mini.recipes.oracle import OracleModule
from escdiff.mini.recipes.scene_oracle import SceneOracleModule


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return OracleModule(1e-3, 10)


@pytest.fixture
def batch():
    """A line-up of shapes and one of materials."""
    return torch.rand(32, 3, 64, 64) * 2 - 1, labels_of([*lineup(0, 0), *lineup(0, 1)])


def moved(module, batch):
    """Numbers of the networks, and names of the embeddings, whose weights have a gradient after a step."""
    module.zero_grad()
    module.training_step(batch, 0)["loss"].backward()
    return {name.split(".")[2] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_factors_teach_every_network_and_lineups_the_embeddings_too(module, batch):
    pixels, labels = batch
    assert moved(module, batch) == {"0", "1", "2", "3", "shape_id", "material_id"}
    single = labels | {name: torch.full_like(labels[name], -1) for name in ("shape_id", "material_id")}
    assert moved(module, (pixels, single)) == {"0", "1", "2", "3"}


def test_a_contrast_reaches_the_networks_that_its_embedding_sees(module, batch, monkeypatch):
    monkeypatch.setattr(oracle, "sample_losses", lambda out, factors: torch.zeros(len(out["family"])))
    assert moved(module, batch) == {"0", "1", "2", "shape_id", "material_id"}  # all but what reads finish and gloss


@pytest.mark.parametrize("kind", [OracleModule, SceneOracleModule])
def test_a_checkpoint_is_loaded_again(kind):
    first, second = kind(1e-3, 10), kind(1e-3, 10)
    second.load_state_dict(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
