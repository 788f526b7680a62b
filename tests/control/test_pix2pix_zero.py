"""pix2pix-zero against diffusers' own pipeline, and directions from words and from a concept."""

import copy

import diffusers
import pytest
import tiny
import torch
from call import hooks, make_pipeline, paint
from painting import make_concept

import escdiff
from escdiff.conditioning.header import split
from escdiff.control import controlled
from escdiff.control.inversion import record
from escdiff.control.pix2pix_zero import Pix2PixZero, direction_between
from escdiff.support.errors import UserError

PROMPT, SOURCES, TARGETS = "a red mug", ["a red mug", "the red mug"], ["a blue chair", "one blue chair"]
STEPS, GUIDANCE = 3, 3.0


@pytest.fixture(scope="module")
def backbones(tiny_backbone):
    return {"sd": tiny.copied(tiny_backbone), "sd21": tiny.make_sd21(), "sdxl": tiny.make_sdxl()}


def source_of(pipeline):
    return record(
        pipeline, PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, height=128, width=128,
    )  # fmt: skip


def edit(pipeline, control, prompt=PROMPT, **options):
    return paint(controlled(pipeline, control), prompt, steps=STEPS, guidance=GUIDANCE, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sd21"])
def test_equals_diffusers_pipeline(name, backbones):
    backbone, amount = backbones[name], 20.0
    kind = getattr(diffusers, "StableDiffusionPix2PixZeroPipeline", None)
    if kind is None:
        pytest.skip("this diffusers has no StableDiffusionPix2PixZeroPipeline")
    pipeline = make_pipeline(backbone)
    source, direction = source_of(pipeline), direction_between(pipeline, SOURCES, TARGETS)
    ours = edit(pipeline, Pix2PixZero(source, direction, amount, update="half"))
    missing = dict.fromkeys(("caption_generator", "caption_processor", "inverse_scheduler"))
    unet = copy.deepcopy(backbone.unet)  # it leaves processors behind, and parameters that take gradients
    oracle = make_pipeline(backbone, kind, unet=unet, **missing)
    theirs = oracle(
        PROMPT, source_embeds=oracle.get_embeds(SOURCES), target_embeds=oracle.get_embeds(TARGETS),
        latents=source.start, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
        cross_attention_guidance_amount=amount,
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for other in (
        edit(pipeline, Pix2PixZero(source, direction, amount)),
        edit(pipeline, Pix2PixZero(source, direction, 0.0)),
        edit(pipeline, Pix2PixZero(source, 0 * direction, amount)),
    ):
        assert (ours - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd21", "sdxl"])
def test_no_amount_and_no_direction_is_stock_bit_for_bit(name, backbones):
    pipeline, before = make_pipeline(backbones[name]), hooks(backbones[name].unet)
    source = source_of(pipeline)
    nothing = torch.zeros_like(direction_between(pipeline, ["a"], ["b"]))
    assert torch.equal(edit(pipeline, Pix2PixZero(source, nothing, 0.0)), source.clean)
    # Its own words hold its own maps: there is nothing to move.
    torch.testing.assert_close(edit(pipeline, Pix2PixZero(source, nothing)), source.clean, atol=1e-4, rtol=1e-4)
    assert hooks(pipeline.unet) == before


def test_a_direction_from_a_concept_and_a_batch(backbones):
    pipeline = make_pipeline(backbones["sd"])
    source = source_of(pipeline)
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], spread=20.0))
    direction = direction_between(pipeline, ["a red mug"], ["a <appearance> mug"])
    assert split(direction)[0].shape[1] == 16 * 77
    words = direction_between(pipeline, SOURCES, TARGETS)
    cells = [direction_between(pipeline, SOURCES, [text]).unflatten(1, (-1, 77)) for text in TARGETS]
    torch.testing.assert_close(words, torch.stack(cells).mean(0)[:, 0])
    control = Pix2PixZero(source, direction, 0.01)
    both = edit(pipeline, control, [PROMPT, "a mug"])
    for i, prompt in enumerate([PROMPT, "a mug"]):
        torch.testing.assert_close(edit(pipeline, control, prompt), both[i : i + 1], atol=1e-4, rtol=1e-4)
    escdiff.unload_concept(pipeline)


def test_mistakes_are_one_sentence(backbones):
    pipeline = make_pipeline(backbones["sd"])
    for call, words in (
        (lambda: Pix2PixZero(None, None, -1.0), "amount=-1.0"),
        (lambda: Pix2PixZero(None, None, update="x"), "update='x'"),
        (lambda: direction_between(pipeline, [], ["b"]), "expected a list of each"),
        (lambda: direction_between(pipeline, "a", "b"), "expected a list of each"),
    ):
        with pytest.raises(UserError, match=words):
            call()
