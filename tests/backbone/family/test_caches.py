"""Block caches beside stages, and compilation."""

import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_layerwise_casting,
)
from families import make_residuals, make_setup
from torch._dynamo.testing import CompileCounter

from escdiff.backbone.family import Residuals
from escdiff.support.errors import UserError

BOUNDS = (0, 500, 1000)


def first_block(model):
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.1))


def faster(model):
    apply_faster_cache(model, FasterCacheConfig(current_timestep_callback=lambda: 500, is_guidance_distilled=True))


@pytest.mark.parametrize(("cache", "name"), [(first_block, "FirstBlockCache"), (faster, "FasterCache")])
def test_caches_are_refused_with_stages(joint, cache, name):
    space = joint.family.space(joint.model, BOUNDS)
    staged = make_residuals(*joint.residuals.values.shape[1::3], stages=2)
    packed = joint.family.pack(joint.model, space, joint.text, staged)
    with joint.family.attach(joint.model, space):
        joint.run(packed)
        cache(joint.model)  # enabled afterwards
        with pytest.raises(UserError, match=f"{name} is enabled .* earlier stage's words"):
            joint.run(packed)
    with pytest.raises(UserError, match=name):
        joint.family.attach(joint.model, space)
    joint.attach().remove()  # one stage says the same at every step


def test_other_hooks_of_diffusers_are_no_caches(transformer):
    apply_layerwise_casting(transformer.model, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    transformer.family.attach(transformer.model, transformer.family.space(transformer.model, BOUNDS)).remove()


def test_a_first_block_cache_with_one_stage_keeps_the_stream_right():
    """A skipped block gives its input back; the residual must not stay in it."""
    flux = make_setup("flux")
    apply_first_block_cache(flux.model, FirstBlockCacheConfig(threshold=1e9))
    with flux.attach(), flux.model.cache_context("cond"):
        first = flux.run(flux.pack(flux.residuals))
        again = flux.run(flux.pack(flux.residuals))
    torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_once_for_all_prompts(transformer):
    torch.compiler.reset()
    with transformer.attach(), torch.no_grad():
        packed = [transformer.pack(make_residuals(*transformer.residuals.values.shape[1::3], seed=s)) for s in range(3)]
        moved = Residuals(transformer.residuals.values, transformer.residuals.positions + 1)
        packed.append(transformer.pack(moved))
        expected = [transformer.run(text) for text in packed]
        counter = CompileCounter()  # a backend that runs graphs as they are
        compiled = torch.compile(transformer.model, backend=counter, dynamic=False)
        first = compiled(**transformer.inputs, encoder_hidden_states=packed[0]).sample
        graphs = counter.frame_count
        got = [compiled(**transformer.inputs, encoder_hidden_states=text).sample for text in packed]
    assert graphs > 0 and counter.frame_count == graphs
    for ours, theirs in zip([first, *got], [expected[0], *expected], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()
