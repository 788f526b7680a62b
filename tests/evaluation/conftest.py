"""A world in which the oracle and the painter can be made perfect, so that figures are known beforehand."""

import pytest
import torch
from perfect import Perfect
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.run import Bench
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.mini.oracle import Oracle, OracleConfig
from escdiff.mini.scene_oracle import SceneOracle, SceneOracleConfig
from escdiff.mini.world.world import Factors, Material, Scene, Shape

FEW = dict.fromkeys(TASKS, 3) | {"swap": 4, "leak": 0, "edit": 0, "copy": 0}


@pytest.fixture
def mug() -> Factors:
    material = Material("red", "white", "striped", 0.5, 0.0, "glossy", 0.5, (0.0,) * 3, (0.0,) * 3, 1)
    return Factors(Shape("mug", (0.5,) * 4), material, Scene("navy", 0, 0, 0, 0.3, 1, 0, 0))


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    torch.manual_seed(0)
    return Oracle(OracleConfig((8, 8, 16, 16), (0, 1, 1, 1), embeddings={})).eval()


@pytest.fixture
def bench(tiny_backbone, oracle, tmp_path) -> Bench:
    return Bench(Perfect(tiny_backbone, oracle, fingerprints=("x", "x")), tmp_path, numbers=FEW)


@pytest.fixture
def real_models(tiny_backbone, oracle, tmp_path) -> Models:
    """Every part, small and untrained."""
    settings = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16
    )
    torch.manual_seed(0)
    folder = str(tmp_path / "vision")
    CLIPVisionModel(settings).save_pretrained(folder)
    config = EncoderConfig(vision=folder, features=32, rank=3)
    encoder = ConceptEncoder.for_backbone(config, load_vision(folder), tiny_backbone, tiny_backbone.p_plus()).eval()
    scenes = SceneOracle(SceneOracleConfig(channels=(4, 4, 8, 8), blocks=(0,) * 4, width=8)).eval()
    return Models(tiny_backbone, oracle, encoder, None, ("tiny",) * 3, 1, 1.0, scene_oracle=scenes)
