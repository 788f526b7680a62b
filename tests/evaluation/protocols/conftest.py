"""A miniature of DreamBench's layout, and painters that are tiny or perfect."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.evaluation.protocols.painter import Painter

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 16}  # fmt: skip
TEXT = """Classes

subject_name,class
mug_1,mug
dog_1,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture(scope="session")
def dreambench(tmp_path_factory):
    root = tmp_path_factory.mktemp("dreambooth")
    rng = np.random.default_rng(0)
    for name in ("mug_1", "dog_1"):
        (root / "dataset" / name).mkdir(parents=True)
        color = rng.integers(0, 200, 3)
        for i in range(3):
            pixels = np.full((48, 60, 3), 230, np.uint8)
            pixels[10 + i : 40, 15 + 2 * i : 45] = color + rng.integers(0, 40, (30 - i, 30 - 2 * i, 3))
            Image.fromarray(pixels).save(root / "dataset" / name / f"{i:02d}.jpg")
    (root / "dataset" / "prompts_and_classes.txt").write_text(TEXT)
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
