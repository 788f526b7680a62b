"""What the bundled model's judges read, however much of it is asked for."""

import pytest
import torch

from escdiff.mini.oracle import Oracle, OracleConfig
from escdiff.mini.scene_oracle import SceneOracle


@pytest.mark.parametrize("judge", [Oracle(OracleConfig((8, 8, 16, 16), (0, 1, 1, 1))), SceneOracle()])
def test_an_embedding_alone_is_that_of_the_whole_reading(judge):
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    whole = judge.read(pixels)
    names = [name for name in ("shape_id", "material_id", "face_id") if name in whole]
    assert names and judge.training
    for name in names:
        assert torch.equal(judge.embed(name, pixels), whole[name]) and judge.training


def test_an_embedding_runs_the_networks_that_it_sees():
    oracle, run = Oracle(OracleConfig((8, 8, 16, 16), (0, 1, 1, 1))), []
    for number, reader in enumerate(oracle.readers):
        reader.register_forward_hook(lambda *_, number=number: run.append(number))
    for name, seen in oracle.config.seen.items():
        run.clear()
        oracle.embed(name, torch.zeros(1, 3, 128, 128))
        assert run == list(seen), name
