"""Attend-and-Excite against diffusers' own pipeline, on tiny models of every shape."""

import copy

import pytest
import tiny
import torch
from call import hooks, make_pipeline, paint

from escdiff.control import controlled, descent
from escdiff.control.attend_excite import AttendExcite
from escdiff.support.errors import UserError

PROMPT = "a red mug and a blue chair"
STEPS = 5


@pytest.fixture(scope="module")
def backbones(tiny_backbone):
    return {"sd": tiny.copied(tiny_backbone), "sd21": tiny.make_sd21(), "sdxl": tiny.make_sdxl()}


def reference(backbone, prompt, **options):
    """Latents of diffusers' deprecated pipeline, on a copy, since it changes the U-Net."""
    import diffusers

    kind = getattr(diffusers, "StableDiffusionAttendAndExcitePipeline", None)
    if kind is None:
        pytest.skip("this diffusers has no StableDiffusionAttendAndExcitePipeline")
    pipeline = make_pipeline(backbone, kind, unet=copy.deepcopy(backbone.unet))
    return paint(pipeline, prompt, steps=STEPS, max_iter_to_alter=3, **options)


@pytest.mark.parametrize("name", ["sd", "sd21"])
def test_equals_diffusers_pipeline(name, backbones):
    pipeline, size = make_pipeline(backbones[name]), 200 if name == "sd" else 20
    control = AttendExcite("mug; chair", layers=1, size=size, until=0.6, refine={})
    ours = paint(controlled(pipeline, control), PROMPT, steps=STEPS)
    theirs = reference(
        backbones[name], PROMPT, token_indices=[3, 7], scale_factor=size, attn_res=(16, 16), thresholds={}
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - paint(pipeline, PROMPT, steps=STEPS)).abs().max() > 0.01  # it did something


def test_refinement_of_a_batch_equals_it_too(backbones, monkeypatch):
    """One sample is refined until its loss is low enough and once more, the other one is good enough as it is."""
    prompts, counts = [PROMPT, "a chair and a mug"], []
    stock = descent.value_and_gradient
    monkeypatch.setattr(descent, "value_and_gradient", lambda *a: counts.append(stock(*a)) or counts[-1])
    control = AttendExcite("mug; chair", layers=1, size=500.0, until=0.6, refine={0.2: 0.0165})
    ours = paint(controlled(make_pipeline(backbones["sd"]), control), prompts, steps=STEPS)
    theirs = reference(
        backbones["sd"], prompts, token_indices=[[3, 7], [2, 5]], scale_factor=500, attn_res=(16, 16),
        thresholds={1: 0.0165},
    )  # fmt: skip
    assert 4 < len(counts) < 20
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd21", "sdxl"])
@pytest.mark.parametrize("how", [{"size": 0.0}, {"until": 0.0, "refine": {}}])
def test_no_strength_is_stock_bit_for_bit(name, how, backbones):
    pipeline = make_pipeline(backbones[name])
    before = hooks(pipeline.unet)
    stock = paint(pipeline, PROMPT, steps=2)
    assert torch.equal(stock, paint(controlled(pipeline, AttendExcite("mug", **how)), PROMPT, steps=2))
    assert not torch.equal(
        stock, paint(controlled(pipeline, AttendExcite("mug", size=500.0, refine={})), PROMPT, steps=2)
    )
    assert torch.equal(stock, paint(pipeline, PROMPT, steps=2))
    assert hooks(pipeline.unet) == before and "step" not in vars(pipeline.scheduler)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"subjects": "mug; dog"}, "'dog' is not in the prompt"),
        ({"subjects": " ; "}, "expected different ones"),
        ({"subjects": "mug; mug"}, "expected different ones"),
        ({"subjects": "mug", "layers": 3}, "factors 1, 2, 4, 8"),
        ({"subjects": "mug", "until": 2.0}, "until=2.0"),
    ],
)
def test_mistakes_are_one_sentence(given, words, backbones):
    pipeline = make_pipeline(backbones["sd"])
    before = hooks(pipeline.unet)
    with pytest.raises(UserError, match=words) as caught:
        paint(controlled(pipeline, AttendExcite(**given)), PROMPT)
    assert "\n" not in str(caught.value) and hooks(pipeline.unet) == before
    assert "step" not in vars(pipeline.scheduler)
