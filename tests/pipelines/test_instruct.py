"""InstructPix2Pix: a widened U-Net, and what its training and its sampling make of a picture and an instruction."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from escdiff.backbone.adapters.wide_input import widened
from escdiff.pipelines.generate import generate
from escdiff.pipelines.instruct import instruct, load_instruct, make_instruct
from escdiff.support.errors import UserError
from escdiff.training.editing.instruct import as_shown

TEXTS = ["make the mug blue", "turn the mug into a chair"]


@pytest.fixture(scope="module", params=["sd", "sd21"])
def backbone(request, tiny_backbone):
    return tiny.copied(tiny_backbone) if request.param == "sd" else tiny.make_sd21()


@pytest.fixture(scope="module")
def trained(backbone):
    """A widened U-Net that looks at its picture."""
    unet = widened(backbone.unet, 8).eval().requires_grad_(False)
    torch.nn.init.normal_(unet.conv_in.weight[:, 8:], std=0.3, generator=torch.Generator().manual_seed(1))
    return unet


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8).astype(np.uint8)) for _ in TEXTS]


def apart(one, two):
    """Largest difference of levels, picture by picture."""
    return [np.abs(np.int16(a) - np.int16(b)).max() for a, b in zip(one, two, strict=True)]


def test_new_channels_change_nothing_at_first(backbone):
    wide, sample = widened(backbone.unet, 8), torch.randn(2, 8, 16, 16)
    states, timestep = torch.randn(2, 77, backbone.width), torch.tensor(500)
    seen = torch.cat([sample, torch.randn_like(sample)], 1)
    torch.testing.assert_close(
        wide(seen, timestep, states).sample, backbone.unet(sample, timestep, states).sample, atol=1e-6, rtol=1e-5
    )
    assert wide.config.in_channels == 16 and backbone.unet.config.in_channels == 8
    assert wide.conv_in.weight[:, 8:].abs().max() == 0


def test_an_untrained_one_paints_the_backbones_pictures_at_any_image_guidance(backbone, pictures):
    pipeline = make_instruct(backbone, widened(backbone.unet, 8).eval())
    stock = generate(backbone, TEXTS, steps=3, guidance=4.0)
    for scale in (1.0, 3.0):
        edited = instruct(pipeline, pictures, TEXTS, steps=3, guidance=4.0, image_guidance=scale)
        assert max(apart(edited, stock)) <= 1


@torch.no_grad()
def test_sampling_is_the_three_rows_of_training_pixel_for_pixel(backbone, trained, pictures):
    """Plain lines, with what training shows the U-Net, against diffusers' pipeline; a batch against one by one."""
    edited = instruct(make_instruct(backbone, trained), pictures, TEXTS, 3, 4.0, 1.7, seeds=[5, 6])
    scheduler = type(backbone.scheduler).from_config(backbone.scheduler.config)
    scheduler.set_timesteps(3)
    levels = torch.from_numpy(np.stack([np.float32(picture) / 255 for picture in pictures]))
    pixels = 2.0 * levels.permute(0, 3, 1, 2) - 1.0  # laid out in memory as diffusers has it
    shown = as_shown(backbone.moments(pixels))
    read = lambda texts: backbone.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids  # noqa: E731
    words, none = (backbone.text_encoder(read(texts))[0] for texts in (TEXTS, ["", ""]))
    latents = torch.cat([torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)])
    for timestep in scheduler.timesteps:
        rows = torch.cat([torch.cat([latents, x], 1) for x in (shown, shown, torch.zeros_like(shown))])
        both, picture, neither = trained(rows, timestep, torch.cat([words, none, none])).sample.chunk(3)
        output = neither + 4.0 * (both - picture) + 1.7 * (picture - neither)
        latents = scheduler.step(output, timestep, latents).prev_sample
    plain = backbone.decode(latents).div(2).add(0.5).clamp(0, 1).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    assert apart(edited, plain) == [0, 0]
    alone = instruct(make_instruct(backbone, trained), pictures[1:], TEXTS[1:], 3, 4.0, 1.7, seeds=[6])
    assert max(apart(alone, edited[1:])) <= 1


def test_what_is_stored_is_loaded_by_diffusers_and_by_us(backbone, trained, pictures, tmp_path):
    pipeline = make_instruct(backbone, trained)
    pipeline.save_pretrained(tmp_path)
    stock = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path, safety_checker=None)
    kept, theirs, ours = (
        instruct(each, pictures, TEXTS, steps=2) for each in (pipeline, stock, load_instruct(tmp_path))
    )
    assert max(apart(kept, theirs)) <= 1 and max(apart(theirs, ours)) <= 1  # weights of a file lie elsewhere in memory
    for name, weight in trained.named_parameters():
        assert torch.equal(weight, stock.unet.get_parameter(name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instructions": ["make it red", " "]}, "an empty instruction"),
        ({"pictures": [Image.new("RGB", (128, 128)), Image.new("RGB", (64, 64))]}, "64 x 64, 128 x 128"),
        ({"pictures": [Image.new("RGB", (130, 128))] * 2}, "multiples of 8"),
        ({"image_guidance": 0.5}, "image_guidance=0.5"),
    ],
)
def test_mistakes_are_one_sentence(backbone, trained, pictures, change, words):
    given = {"pictures": pictures, "instructions": TEXTS} | change
    with pytest.raises(UserError, match=words) as caught:
        instruct(make_instruct(backbone, trained), **given, steps=1)
    assert "\n" not in str(caught.value)


def test_other_models_are_refused(backbone, tmp_path):
    backbone.pipeline().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reads 8 channels"):
        load_instruct(tmp_path)
    with pytest.raises(UserError, match="no InstructPix2Pix model"):
        load_instruct(tmp_path / "nowhere")
