import operator
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from painting import PROMPT, arrays, make_concept

from escdiff.backbone.branches import add_branches
from escdiff.mini.parts import make_tokenizer
from escdiff.pipelines.edit import with_ddim
from escdiff.pipelines.generate import count_calls, finite, generate, stack
from escdiff.support.errors import UserError


@pytest.mark.parametrize(("scheduler", "calls"), [
    (PNDMScheduler(skip_prk_steps=True, steps_offset=1), 4),  # as Stable Diffusion's checkpoints name it
    (HeunDiscreteScheduler(), 5),
    (EulerDiscreteScheduler(), 3),
])  # fmt: skip
def test_the_counted_calls_are_those_that_happen(tiny_backbone, scheduler, calls):
    backbone, seen = replace(tiny_backbone, scheduler=scheduler), []
    generate(backbone, ["a mug", "a cat"], steps=3, on_step=seen.append)
    assert seen == [2] * calls and count_calls(backbone, 3) == calls


def test_a_picture_of_another_size(tiny_backbone):
    (picture,) = generate(tiny_backbone, ["a mug"], steps=1, height=64, width=96)
    assert picture.size == (96, 64)
    with pytest.raises(UserError, match="height=100 given; expected a multiple of 8 pixels, such as 96"):
        generate(tiny_backbone, ["a mug"], steps=1, height=100)
    with pytest.raises(UserError, match="width=0 given; .* such as 8"):
        generate(tiny_backbone, ["a mug"], steps=1, width=0)


def test_a_vae_that_overflows_half_precision_decodes_in_float32(caplog):
    backbone = tiny.make_backbone()
    with torch.no_grad():  # the weights fit float16, as do SDXL's, but what comes out of them does not
        backbone.vae.decoder.conv_in.weight.mul_(1e5)
    whole = arrays(generate(backbone, ["a mug"], steps=1))
    backbone.to(dtype=torch.float16)
    half = arrays(generate(backbone, ["a mug"], steps=1))
    assert half.max() > 0 and (half - whole).abs().float().mean() < 10
    assert "would be black" in caplog.text and "bfloat16 or float32" in caplog.text
    assert backbone.vae.dtype == torch.float16


@pytest.mark.parametrize("part", ["vae.decoder", "unet"])
def test_black_pictures_are_no_result(part):
    backbone = tiny.make_backbone().to(dtype=torch.float16)
    with torch.no_grad():
        operator.attrgetter(part)(backbone).conv_in.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"would be black.*VAE.*try bfloat16 or float32"):
        generate(backbone, ["a mug"], steps=1)


def test_plain_prompts_equal_the_stock_pipeline(tiny_backbone):
    ours = generate(tiny_backbone, ["a red mug", "a cat"], steps=2, guidance=3.0, seeds=[4, 5])
    pipeline = tiny_backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    stock = pipeline(["a red mug", "a cat"], num_inference_steps=2, guidance_scale=3.0, generator=generators).images
    assert torch.equal(arrays(ours), arrays(stock))


@pytest.mark.parametrize("length", [77, 20])
def test_vectors_of_the_anchor_words_equal_those_words(length):
    """In float64: rows that share a beginning are summed in another order, which the last bits of float32 show."""
    backbone = tiny.make_backbone(tokenizer=make_tokenizer(length)).to(dtype=torch.float64)
    concept = make_concept(backbone, spread=0.0)
    words = generate(backbone, ["a photo of a object object object object"], steps=2)
    assert torch.equal(arrays(generate(backbone, [PROMPT], concept, steps=2)), arrays(words))
    with pytest.raises(UserError, match="token"):
        generate(backbone, ["object " * length + PROMPT], concept, steps=2)


def test_a_picture_depends_on_its_own_prompt_concept_and_seed_only(tiny_backbone):
    concepts = [make_concept(tiny_backbone, seed) for seed in range(3)]
    together = generate(tiny_backbone, [PROMPT] * 3, concepts, steps=2, seeds=[7, 8, 9], batch_size=2)
    alone = generate(tiny_backbone, [PROMPT], concepts[1], steps=2, seeds=[8])
    difference = (arrays(together)[1] - arrays(alone)[0]).abs()
    assert difference.max() <= 1  # of 255: sums of a batch are rounded in another order
    assert len({p.tobytes() for p in together}) == 3


@pytest.mark.parametrize("make", [tiny.make_backbone, tiny.make_sdxl])
def test_a_picture_is_the_same_without_the_text_encoders(make):
    backbone, texts = make(), [PROMPT, "a red mug", "a <concept>"]
    concepts = [make_concept(backbone, seed) for seed in range(3)]
    options = {"steps": 2, "guidance": 3.0, "negative_prompt": "blurry", "batch_size": 2}
    stock, seen = arrays(generate(backbone, texts, concepts, **options)), []
    hook = backbone.unet.register_forward_pre_hook(
        lambda *_: seen.append(sum(p.numel() for p in backbone.text_encoder.parameters()))
    )
    freed = arrays(generate(backbone, texts, concepts, **options, free_text=True))
    hook.remove()
    assert torch.equal(stock, freed) and set(seen) == {0}


def test_guidance_of_one_runs_the_unet_once_per_step(tiny_backbone):
    calls = []
    hook = tiny_backbone.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    try:
        generate(tiny_backbone, ["a cat"], steps=2, guidance=1.0)
        generate(tiny_backbone, ["a cat"], steps=2, guidance=2.0)
    finally:
        hook.remove()
    assert calls == [1, 1, 2, 2]


def test_every_stage_gets_its_own_conditioning(tiny_backbone):
    concept, seen = make_concept(tiny_backbone, layers="tied", stages=5), {}
    layer = tiny_backbone.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    # Both hooks only look: they return None.
    steps = tiny_backbone.unet.register_forward_pre_hook(lambda module, args: seen.update({int(args[1]): []}))
    states = layer.register_forward_pre_hook(lambda module, args: seen[next(reversed(seen))].append(args[0]))
    try:
        generate(tiny_backbone, [PROMPT, "a cat"], concept, steps=3, guidance=2.0)
    finally:
        steps.remove(), states.remove()
    grid = tiny_backbone.prompts.encode([PROMPT, "a cat"], concept.placeholders())
    for timestep, (shown,) in seen.items():
        stage = int(concept.space.stage_of(torch.tensor([timestep]))[0])
        torch.testing.assert_close(shown[2:], grid[:, 0, stage])
    assert len({int(concept.space.stage_of(torch.tensor([t]))[0]) for t in seen}) == 3


def test_progress_counts_every_step_of_every_picture(tiny_backbone):
    done = []
    generate(tiny_backbone, ["a"] * 3, steps=2, batch_size=2, on_step=done.append)
    assert sum(done) == 6


def test_a_stack_keeps_what_all_have_and_refuses_strangers(tiny_backbone):
    whole, part = make_concept(tiny_backbone), make_concept(tiny_backbone, 1).only("shape")
    assert list(stack([whole, part], tiny_backbone)) == ["<shape>"]
    other = tiny.make_backbone(unet=tiny.make_unet(width=64), text_encoder=tiny.make_text_encoder(width=64))
    with pytest.raises(UserError, match="was made for"):
        generate(other, [PROMPT], whole, steps=1)
    with pytest.raises(UserError, match="unknown placeholder <shapes>"):
        generate(tiny_backbone, ["a <shapes>"], whole, steps=1)


def test_another_vae_or_scheduler_freezes_nothing_that_is_trained():
    backbone = tiny.make_backbone().to(dtype=torch.float16)
    add_branches(backbone.unet, 2)
    trained = {name for name, parameter in backbone.unet.named_parameters() if parameter.requires_grad}
    black = np.full((1, 16, 16, 3), np.nan, np.float32)
    assert np.isfinite(finite(black, torch.zeros(1, tiny.LATENT_CHANNELS, 2, 2).half(), backbone)).all()
    backbone.scheduler, scheduler = PNDMScheduler(), backbone.scheduler
    noise = backbone.noise
    assert type(with_ddim(backbone).scheduler) is type(scheduler) and with_ddim(backbone).noise is not noise
    assert trained and trained == {name for name, p in backbone.unet.named_parameters() if p.requires_grad}
