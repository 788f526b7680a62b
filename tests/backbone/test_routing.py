"""Routed branches change keys and values at the tokens of their own placeholder and nowhere else, to the bit."""

import copy
from functools import partial

import pytest
import tiny
import torch
from painting import arrays, make_concept
from peft.tuners.lora import LoraLayer

import escdiff
from escdiff.backbone.branches import (
    Branches,
    add_branches,
    branch_parameters,
    remove_branches,
    set_branches,
)
from escdiff.concept import ATTRIBUTES, token_masks
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.acting import acting, current_masks
from escdiff.conditioning.layer_feed import LayerFeed
from escdiff.pipelines.generate import generate

COUNTS = {"<shape>": 1, "<appearance>": 2, "<concept>": 3}
TEXTS = ["a photo of a <appearance> <shape>", "one <shape>", "a <concept>", "a plain mug"]
PLACES = {"shape": [{7}, {2}, {2}, set()], "appearance": [{5, 6}, set(), {3, 4}, set()]}


def fill(unet):
    torch.manual_seed(0)
    with torch.no_grad():
        for name in ATTRIBUTES:
            for p in branch_parameters(unet, name):
                p.normal_()


@pytest.fixture
def backbone(tiny_backbone):
    backbone = tiny.make_backbone(**{p: getattr(tiny_backbone, p) for p in ("vae", "tokenizer", "text_encoder")})
    add_branches(backbone.unet, rank=2, routed=True)
    fill(backbone.unet)
    return backbone


@pytest.fixture
def changed(backbone):
    """For every call of a key or value layer: (B, T) bool, which tokens differ from those of the stock layer."""
    seen, handles = [], []

    def compare(layer, args, output):
        seen.append((output != layer.base_layer(args[0])).any(-1))

    for layer in backbone.unet.modules():
        if isinstance(layer, LoraLayer):
            handles.append(layer.register_forward_hook(compare))
    yield seen
    for handle in handles:
        handle.remove()


def expected(attributes, texts=range(4)):
    mask = torch.zeros(len(texts), 77, dtype=torch.bool)
    for row, text in enumerate(texts):
        for attribute in attributes:
            mask[row, list(PLACES[attribute][text])] = True
    return mask


def run(unet, rows):
    return unet(torch.ones(rows, 8, 16, 16), 5, torch.ones(rows, 77, 32)).sample


def test_tokens_of_each_attribute(tiny_backbone):
    masks = token_masks(tiny_backbone.prompts, TEXTS, COUNTS)
    for i, attribute in enumerate(ATTRIBUTES):
        assert [set(row.nonzero().flatten().tolist()) for row in masks[:, i]] == PLACES[attribute]


@pytest.mark.parametrize("active", [("shape",), ("appearance",), ATTRIBUTES])
def test_each_acts_at_its_own_tokens(backbone, changed, active):
    set_branches(backbone.unet, dict.fromkeys(active, 1.0))
    with torch.no_grad(), acting(token_masks(backbone.prompts, TEXTS, COUNTS)):
        run(backbone.unet, 4)
    assert len(changed) == 32 and all(torch.equal(mask, expected(active)) for mask in changed)
    changed.clear()
    with torch.no_grad():  # nowhere, when nobody says where
        assert torch.equal(run(backbone.unet, 4), run(tiny.make_unet(), 4))
    assert not torch.stack(changed).any()


def test_at_their_own_tokens_they_are_plain_lora(backbone):
    plain = tiny.make_unet()
    add_branches(plain, rank=2)
    fill(plain)
    with torch.no_grad(), acting(torch.ones(2, len(ATTRIBUTES), 77)):
        assert torch.equal(run(backbone.unet, 2), run(plain, 2))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_under_guidance_the_negative_half_gets_none(backbone, changed, guidance):
    generator = torch.Generator().manual_seed(1)
    vectors = {name: torch.randn(1, 16, 1, k, 32, generator=generator) for name, k in COUNTS.items()}
    texts = [TEXTS[i] for i in (0, 3, 1)]
    generate(backbone, texts, vectors, steps=2, guidance=guidance, negative_prompt="a mug", batch_size=2)
    negative = torch.zeros(2 if guidance > 1 else 0, 77, dtype=torch.bool)
    first = torch.cat([negative, expected(ATTRIBUTES, [0, 3])])
    second = torch.cat([negative[:1], expected(ATTRIBUTES, [1])])
    assert len(changed) == 2 * 2 * 32
    assert all(torch.equal(mask, first) for mask in changed[:64])
    assert all(torch.equal(mask, second) for mask in changed[64:])
    assert current_masks() is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fed_layers_see_one_row_for_several_noised_copies(backbone, changed, checkpointing):
    unet = backbone.unet
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    grid = torch.randn(4, 16, 77, 32, requires_grad=True)
    feed = LayerFeed(unet, ConditioningSpace.p_plus(unet))
    masks = token_masks(backbone.prompts, TEXTS, COUNTS)
    output = unet(torch.randn(8, 8, 16, 16), 5, feed.load(grid, 2, masks)).sample
    output.square().sum().backward()
    assert len(changed) >= 32 and all(torch.equal(mask, expected(ATTRIBUTES)) for mask in changed)
    for name in ATTRIBUTES:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch_parameters(unet, name))
    feed.remove()
    assert current_masks() is None


def test_saved_loaded_copied_and_taken_out(backbone, tmp_path):
    unet, other = backbone.unet, tiny.make_unet()
    Branches.of(unet).save(tmp_path)
    Branches.read(tmp_path, routed=True).put(other)
    twin = copy.deepcopy(other)
    with torch.no_grad():
        stock, paint = run(tiny.make_unet(), 4), partial(run, rows=4)
        with acting(token_masks(backbone.prompts, TEXTS, COUNTS)):
            assert torch.equal(paint(other), paint(unet)) and not torch.equal(paint(other), stock)
        assert torch.equal(paint(twin), stock)
        remove_branches(other)
        assert torch.equal(paint(other), stock)
    assert list(other.state_dict()) == list(tiny.make_unet().state_dict())  # as stock diffusers writes and reads it


@pytest.mark.parametrize("name", [None, "red mug"])
def test_branches_act_in_a_stock_pipeline_as_in_ours(backbone, name):
    """Also beside a stock prompt in one batch, and for a concept with a name."""
    concept = make_concept(backbone)
    prompts = ["a photo of a <appearance> <shape>", "a plain mug"]
    expected = generate(backbone, prompts, concept, steps=2, seeds=[1, 2])
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    seeds = lambda: [torch.Generator().manual_seed(seed) for seed in (1, 2)]  # noqa: E731
    stock = pipeline(prompts, num_inference_steps=2, guidance_scale=5.0, generator=seeds()).images
    escdiff.load_concept(pipeline, concept, name)
    texts = [text.replace("<", f"<{name}-") if name else text for text in prompts]
    painted = pipeline(texts, num_inference_steps=2, guidance_scale=5.0, generator=seeds()).images
    escdiff.unload_concept(pipeline)
    again = pipeline(prompts, num_inference_steps=2, guidance_scale=5.0, generator=seeds()).images
    assert torch.equal(arrays(painted), arrays(expected)) and torch.equal(arrays(again), arrays(stock))
    set_branches(backbone.unet, {})
    without = generate(backbone, prompts, concept, steps=2, seeds=[1, 2])
    assert not torch.equal(arrays(without)[0], arrays(expected)[0])
    assert torch.equal(arrays(without)[1], arrays(expected)[1])
