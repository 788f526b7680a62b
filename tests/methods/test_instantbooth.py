"""InstantBooth: a word and gated patches, in training and in anybody's pipeline."""

import numpy as np
import pytest
import torch
from method_step import step_of

import escdiff
from escdiff.backbone.adapters.attached import applied
from escdiff.backbone.adapters.gated import is_gated
from escdiff.concept import Concept
from escdiff.methods.instantbooth import InstantBooth, augmented
from escdiff.pipelines.generate import generate
from escdiff.training.method.references import References


@pytest.fixture
def method(backbone, towers):
    torch.manual_seed(0)
    return InstantBooth(backbone, str(towers[0]))


def test_it_starts_at_the_class_word_with_closed_gates_and_learns_all_of_its_own(method, references):
    step_of(method, references)
    open_at_first = [n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert "word.1.weight" in open_at_first and len(open_at_first) > 16
    assert not [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert torch.equal(method.concept().vectors["concept"][0, 0], method.anchor("concept"))
    own = {id(p) for p in method.parameters()}
    assert all(p.grad is None for part in method.backbone.modules() for p in part.parameters() if id(p) not in own)


def test_the_sampled_word_has_the_norm_of_its_class_word(method, references):
    torch.nn.init.normal_(method.word[1].weight, std=3.0)
    method.start(References.read(references, 128).pixels)
    found = method.concept()
    word, anchor = found.vectors["concept"][0, 0, 0], method.anchor("concept")[0]
    assert torch.allclose(word.norm(), anchor.norm(), atol=1e-5) and not torch.allclose(word, anchor, atol=1e-3)
    assert found.extras["image_embeds"].shape == (32, 16)  # the patches of both references


def test_in_a_stock_pipeline_it_paints_what_generate_paints_and_other_prompts_are_stock(
    method, fresh, references, tmp_path
):
    for parameter in method.kept:
        torch.nn.init.normal_(parameter, std=0.3)
    method.start(References.read(references / "a.png", 128).pixels)
    method.export(tmp_path)
    concept, prompt = Concept.load(tmp_path / "concept.safetensors"), "a photo of a <concept>"
    ours = fresh()
    with applied(ours, [concept], [tmp_path]):
        expected, again = generate(ours, [prompt, prompt], concept, steps=2, guidance=4.0, seeds=[3, 4], batch_size=1)
    backbone = fresh()
    pipeline, keys = backbone.pipeline(), list(backbone.unet.state_dict())
    pipeline.set_progress_bar_config(disable=True)

    def paint(prompt, seed=3):
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(pipeline(prompt, num_inference_steps=2, guidance_scale=4.0, generator=generator).images[0])

    stock = paint("a mug")
    escdiff.load_concept(pipeline, tmp_path / "concept.safetensors")
    found = paint(prompt)
    assert np.array_equal(found, np.asarray(expected)) and np.array_equal(paint(prompt, 4), np.asarray(again))
    assert np.array_equal(paint("a mug"), stock)
    gates = [module for module in backbone.unet.modules() if hasattr(module, "beta")]
    assert len(gates) == 16 and all(gate.beta == method.beta for gate in gates)
    for gate in gates:
        gate.beta = 1.0
    assert not np.array_equal(paint(prompt), found)
    for gate in gates:
        gate.beta = 0.0
    closed = paint(prompt)
    escdiff.unload_concept(pipeline)
    assert not is_gated(backbone.unet) and list(backbone.unet.state_dict()) == keys
    assert np.array_equal(paint("a mug"), stock)
    words = {"<concept>": concept.vectors["concept"][None]}
    alone = generate(fresh(), [prompt], words, concept.space, steps=2, guidance=4.0, seeds=[3])[0]
    assert np.array_equal(closed, np.asarray(alone))  # the word without its patches


def test_augmented_references_keep_picture_and_mask_together():
    torch.manual_seed(0)
    pixels = torch.rand(4, 3, 32, 32)
    mask = (pixels[:, :1] > 0.5).float()
    moved, with_it = augmented(torch.cat([pixels[:, :2], mask], 1), mask)
    inside = (with_it > 0) | (torch.arange(32) > -1)
    assert moved.shape == pixels.shape and inside.all() and not torch.equal(moved[:, 2:], mask)
    centre = (slice(None), slice(None), slice(10, 22), slice(10, 22))
    assert torch.allclose(moved[:, 2:][centre], with_it[centre], atol=1e-5)
    assert augmented(pixels, None)[1] is None
