"""A concept of one backbone given to another: refused at the door, before any weights are read."""

import time

import pytest
import torch
from families import build
from transformer_pipelines import PIPELINES

from escdiff.backbone.family import FAMILIES
from escdiff.backbone.family.stored import residual_concept
from escdiff.cli import infer
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Family -> a folder with configurations alone."""
    root = tmp_path_factory.mktemp("backbones")
    for name, make in PIPELINES.items():
        pipeline = make()
        pipeline.save_config(root / name)
        pipeline.transformer.save_config(root / name / "transformer")
    return {name: root / name for name in PIPELINES} | {"sd": "mini"}


@pytest.mark.parametrize("made", PIPELINES)
def test_other_families_are_named_within_two_seconds(made, backbones, tmp_path):
    family, model = FAMILIES[made], build(made)
    space = family.space(model)
    residuals = {"concept": torch.zeros(space.num_layers, 1, 1, family.layer_width(model))}
    concept = residual_concept(family, space, residuals, {"concept": "mug"}, f"tiny-{made}", "0" * 12)
    concept.save(tmp_path / "c.safetensors")
    for given, folder in backbones.items():
        if given == made:
            continue
        config = compose("infer", [f"backbone.name={folder}", f"concept={tmp_path / 'c.safetensors'}",
                                   f"out={tmp_path / 'out'}"])  # fmt: skip
        start = time.process_time()
        with pytest.raises(UserError, match=f"made for 'tiny-{made}' of the family '{made}'.* of the family '{given}'"):
            infer.run(config)
        assert time.process_time() - start < 2
    assert not (tmp_path / "out").exists()
