"""ESCDiffPipeline by diffusers' conventions, with a tiny encoder."""

import json

import diffusers
import numpy as np
import pytest
import torch
from painting import PROMPT, make_concept
from PIL import Image
from test_loading import OPTIONS
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff import ESCDiffPipeline
from escdiff.conditioning import ConditioningSpace
from escdiff.data.pictures import to_mask
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.vision import load_vision
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                                     image_size=32, patch_size=16)).save_pretrained(folder)  # fmt: skip
    settings = EncoderConfig(vision=str(folder), shape_depths=(1, 2), appearance_depths=(0, 1), features=16, rank=2)
    space = ConditioningSpace.p_plus(tiny_backbone.unet)
    return ConceptEncoder.for_backbone(settings, load_vision(settings.vision), tiny_backbone, space).eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(2)]


def paint(pipeline, prompt, **options):
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), **OPTIONS | options).images


@pytest.mark.slow
def test_references_save_load_and_diffusers_conventions(encoder, pictures, tiny_folder, tmp_path):
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.set_encoder(encoder)
    steps = []
    both = paint(pipeline, PROMPT, shape=pictures[0], appearance=pictures[1],
                 callback_on_step_end=lambda pipe, i, t, values: steps.append(i) or values)  # fmt: skip
    assert steps == [0, 1] and "encode_prompt" not in vars(pipeline)
    concept = pipeline.encode_references(pictures[0], pictures[1])
    assert torch.equal(paint(pipeline, PROMPT, concept=concept), both)
    assert not torch.equal(paint(pipeline, PROMPT, concept=concept, strength=0.0), both)
    assert paint(pipeline, "a cat", output_type="np", num_images_per_prompt=2).shape == (2, 128, 128, 3)

    pipeline.save_pretrained(tmp_path / "saved")
    again = ESCDiffPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    # The checkpoint keeps the encoder in float16.
    torch.testing.assert_close(
        paint(again, PROMPT, shape=pictures[0], appearance=pictures[1]), both, atol=1e-2, rtol=1e-2
    )
    assert (
        json.loads((tmp_path / "saved" / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        == "StableDiffusionPipeline"
    )
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    stock.set_progress_bar_config(disable=True)
    assert torch.equal(paint(stock, "a cat"), paint(again, "a cat"))


def test_mistakes(encoder, pictures, tiny_folder, tiny_backbone, tmp_path):
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder)
    with pytest.raises(UserError, match="no concept encoder"):
        pipeline(PROMPT, shape=pictures[0])
    with pytest.raises(UserError, match="one or the other"):
        pipeline(PROMPT, shape=pictures[0], concept=make_concept(tiny_backbone))
    encoder.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(about | {"width": 768}), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UserError, match="width 768.*width 32"):
        ESCDiffPipeline.from_pretrained(tiny_folder, encoder=tmp_path)


def test_a_mask(encoder, pictures, tiny_folder, tmp_path):
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.set_encoder(encoder)
    mask = Image.new("L", pictures[0].size, 0)
    mask.paste(255, (20, 5, 50, 35))
    mask.save(tmp_path / "mask.png")
    whole = pipeline.encode_references(shape=pictures[0])
    masked = pipeline.encode_references(shape=pictures[0], mask=mask)
    assert not torch.equal(masked.vectors["shape"], whole.vectors["shape"])
    white = pipeline.encode_references(shape=pictures[0], mask=Image.new("L", pictures[0].size, 255))
    torch.testing.assert_close(white.vectors, whole.vectors)
    tensor = to_mask(mask, encoder.vision.image_size)
    given = pipeline.encode_references(shape=pictures[0], mask=tensor)
    assert torch.equal(given.vectors["shape"], masked.vectors["shape"])
    expected = paint(pipeline, "a <shape>", concept=masked)
    assert torch.equal(paint(pipeline, "a <shape>", shape=pictures[0], mask=tmp_path / "mask.png"), expected)
    with pytest.raises(UserError, match="a mask was given without a picture"):
        pipeline("a cat", mask=mask)
    with pytest.raises(UserError, match="one mask was given for two pictures"):
        pipeline(PROMPT, shape=pictures[0], appearance=pictures[1], mask=mask)
    both = pipeline.encode_references(shape=pictures[0], appearance=pictures[0], mask=mask)
    assert torch.equal(both.vectors["shape"], masked.vectors["shape"])
    with pytest.raises(UserError, match=r"the mask has \(10, 10\) pixels, its picture \(60, 40\)"):
        pipeline("a <shape>", shape=pictures[0], mask=mask.resize((10, 10)))
