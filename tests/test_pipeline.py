import pytest
import tiny
import torch

from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.errors import UserError
from escdiff.pipeline import generate, stack

PROMPT = "a photo of a <appearance> <shape>"


def make_concept(backbone, seed=0, layers="each", stages=1, spread=1.0, placement="words") -> Concept:
    generator = torch.Generator().manual_seed(seed)
    space = ConditioningSpace.build(backbone.unet, layers=layers, stages=stages)
    anchors = {a: backbone.prompts.word_embedding("object", 2) for a in ("shape", "appearance")}
    size = (space.num_layers, space.num_stages, 2, backbone.width)
    vectors = {a: anchor + spread * 0.05 * torch.randn(size, generator=generator) for a, anchor in anchors.items()}
    return Concept(vectors, anchors, space, backbone.name, backbone.text_hash, placement=placement)


def arrays(pictures):
    return torch.stack([torch.tensor(list(p.tobytes())) for p in pictures])


def test_plain_prompts_equal_the_stock_pipeline(tiny_backbone):
    ours = generate(tiny_backbone, ["a red mug", "a cat"], steps=2, guidance=3.0, seeds=[4, 5])
    pipeline = tiny_backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    stock = pipeline(["a red mug", "a cat"], num_inference_steps=2, guidance_scale=3.0, generator=generators).images
    assert torch.equal(arrays(ours), arrays(stock))


def test_vectors_of_the_anchor_words_equal_those_words(tiny_backbone):
    concept = make_concept(tiny_backbone, spread=0.0)
    words = generate(tiny_backbone, ["a photo of a object object object object"], steps=2)
    pictures = arrays(generate(tiny_backbone, [PROMPT], concept, steps=2))
    assert (pictures - arrays(words)).abs().max() <= 1  # sums of rows that share a beginning are rounded otherwise


def test_concepts_behind_the_text_encoder(tiny_backbone, tmp_path):
    words = generate(tiny_backbone, ["a photo of a object object object object"], steps=2)
    zero = make_concept(tiny_backbone, spread=0.0, placement="states")
    assert torch.equal(arrays(generate(tiny_backbone, [PROMPT], zero, steps=2)), arrays(words))
    concepts = [make_concept(tiny_backbone, seed, stages=2, spread=200.0, placement="states") for seed in range(2)]
    concepts[1].save(tmp_path / "one.safetensors")
    concepts[1] = Concept.load(tmp_path / "one.safetensors")
    together = arrays(generate(tiny_backbone, ["a <concept>"] * 2, concepts, steps=2, seeds=[7, 8]))
    alone = arrays(generate(tiny_backbone, ["a <concept>"], concepts[1], steps=2, seeds=[8]))
    assert (together[1] - alone[0]).abs().max() <= 1
    other = arrays(generate(tiny_backbone, ["a <concept>"], concepts[0], steps=2, seeds=[8]))
    assert (other - alone).abs().max() > 1
    with pytest.raises(UserError, match="paint them one by one"):
        generate(tiny_backbone, [PROMPT] * 2, [zero, make_concept(tiny_backbone)], steps=1)


def test_a_picture_depends_on_its_own_prompt_concept_and_seed_only(tiny_backbone):
    concepts = [make_concept(tiny_backbone, seed) for seed in range(3)]
    together = generate(tiny_backbone, [PROMPT] * 3, concepts, steps=2, seeds=[7, 8, 9], batch_size=2)
    alone = generate(tiny_backbone, [PROMPT], concepts[1], steps=2, seeds=[8])
    difference = (arrays(together)[1] - arrays(alone)[0]).abs()
    assert difference.max() <= 1  # of 255: sums of a batch are rounded in another order
    assert len({p.tobytes() for p in together}) == 3


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
