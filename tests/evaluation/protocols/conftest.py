"""A miniature of DreamBench's layout, and painters that are tiny or perfect."""

import pytest
import torch
from miniatures import write_dreambench
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.evaluation.protocols.painter import Painter

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 16}  # fmt: skip


@pytest.fixture(scope="session")
def dreambench(tmp_path_factory):
    root = tmp_path_factory.mktemp("dreambooth")
    write_dreambench(root)
    return root


@pytest.fixture(scope="session")
def encoder_folder(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(folder / "tower")
    config = EncoderConfig(vision=str(folder / "tower"), shape_depths=(1, 2), appearance_depths=(0, 1), features=16)
    encoder = ConceptEncoder.for_backbone(config, load_vision(config.vision), tiny_backbone, tiny_backbone.p_plus())
    encoder.eval().save_pretrained(folder / "encoder")
    return folder / "encoder"


@pytest.fixture
def painter(tiny_backbone, encoder_folder):
    encoder = ConceptEncoder.from_pretrained(encoder_folder, tiny_backbone)
    return Painter(tiny_backbone, encoder, steps=1, guidance=1.0, batch_size=3, fingerprint="x")
