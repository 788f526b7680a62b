"""Concepts in stock pipelines over transformers."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from diffusers import DiffusionPipeline, SD3ControlNetModel, StableDiffusion3ControlNetPipeline
from families import build
from tiny import make_backbone
from transformer_pipelines import PIPELINES, make_clip, make_t5, make_t5_tokenizer, paint

import escdiff
from escdiff.backbone.family import Family, Residuals, family_of
from escdiff.backbone.family.spelling import Part, locate, spell
from escdiff.backbone.family.stored import hash_text, residual_concept
from escdiff.concept import Concept
from escdiff.mini.parts import make_tokenizer
from escdiff.support.errors import UserError

WORDS = {"shape": "mug", "appearance": "red"}


@dataclass
class Stock:
    name: str
    pipeline: DiffusionPipeline

    @property
    def family(self) -> Family:
        return family_of(self.pipeline)

    @property
    def encoders(self) -> list:
        parts = [getattr(self.pipeline, f"text_encoder{end}", None) for end in ("", "_2", "_3")]
        return [part for part in parts if part is not None]

    def concept(self, seed: int = 0, scale: float = 1.0, stages=(0, 1000), vectors: int = 1, **words: str) -> Concept:
        space = self.family.space(self.pipeline.transformer, stages)
        shape = (space.num_layers, space.num_stages, vectors, self.family.layer_width(self.pipeline.transformer))
        generator = torch.Generator().manual_seed(seed)
        words = words or WORDS
        residuals = {name: scale * torch.randn(shape, generator=generator) for name in words}
        return residual_concept(self.family, space, residuals, words, f"tiny-{self.name}", hash_text(self.encoders))

    def paint(self, prompt="a photo of a <appearance> <shape>", **options) -> torch.Tensor:
        return paint(self.name, self.pipeline, prompt, **options)


@pytest.fixture(params=list(PIPELINES))
def stock(request) -> Stock:
    return Stock(request.param, PIPELINES[request.param]())


@pytest.fixture
def sd3() -> Stock:
    return Stock("sd3", PIPELINES["sd3"]())


def test_loaded_used_saved_and_unloaded(stock, tmp_path):
    plain = stock.paint("a photo of a red mug")
    stock.concept().save(tmp_path / "mug.safetensors")
    words = escdiff.load_concept(stock.pipeline, tmp_path / "mug.safetensors")
    assert set(words) == {"<shape>", "<appearance>", "<concept>"}
    painted = stock.paint()
    assert not torch.equal(painted, plain)
    assert torch.equal(stock.paint("a photo of a red mug"), plain)  # without a placeholder: stock
    escdiff.unload_concept(stock.pipeline)
    escdiff.load_concept(stock.pipeline, stock.concept())
    assert torch.equal(stock.paint(), painted)
    escdiff.unload_concept(stock.pipeline)
    assert torch.equal(stock.paint("a photo of a red mug"), plain)
    assert "encode_prompt" not in vars(stock.pipeline)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in stock.pipeline.transformer.modules())


def test_strength_zero_says_the_words(stock):
    plain = stock.paint("a photo of a red mug")
    escdiff.load_concept(stock.pipeline, stock.concept(), strength=0.0)
    assert torch.equal(stock.paint(), plain)


@torch.no_grad()
def test_residuals_stand_at_the_words_tokens(stock):
    """The same painted by hand: packed embeddings, positions counted by eye."""
    concept = stock.concept(shape="mug")
    letters = [13, 14, 15]  # of "mug" in "a photo of a mug", where a letter is a token
    positions = {  # behind CLIP's start mark; behind Gemma's and the last token of Sana's instruction
        "pixart": [4], "sana": [2 + letter for letter in letters], "sd3": [5, 77 + 4], "flux": [4], "qwen": letters,
    }[stock.name]  # fmt: skip
    options = {"guidance_scale": 1.0, "prompt_2": None, "prompt_3": None, "negative_prompt": None}
    encoding = {"do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None, "max_sequence_length": 24}
    taken = [
        set(inspect.signature(call).parameters) for call in (stock.pipeline.encode_prompt, stock.pipeline.__call__)
    ]
    encoding, options = (
        {k: v for k, v in d.items() if k in t} for d, t in zip((encoding, options), taken, strict=True)
    )
    if stock.name == "sana":  # what its call passes on
        usual = inspect.signature(stock.pipeline.__call__).parameters["complex_human_instruction"].default
        encoding["complex_human_instruction"] = usual
    embeds = stock.pipeline.encode_prompt(prompt="a photo of a mug", **encoding)
    name, index = {
        "pixart": ("prompt_attention_mask", 1), "sana": ("prompt_attention_mask", 1), "qwen": ("prompt_embeds_mask", 1),
        "sd3": ("pooled_prompt_embeds", 2), "flux": ("pooled_prompt_embeds", 1),
    }[stock.name]  # fmt: skip
    given = {name: embeds[index]}
    family, transformer = stock.family, stock.pipeline.transformer
    space = family.space(transformer)
    values = concept.vectors["shape"][None].expand(-1, -1, -1, len(positions), -1)
    packed = family.pack(transformer, space, embeds[0], Residuals(values, torch.tensor([positions])))
    with family.attach(transformer, space):
        expected = stock.paint(None, prompt_embeds=packed, **given, **options | {"max_sequence_length": 512})
    escdiff.load_concept(stock.pipeline, concept)
    assert torch.equal(stock.paint("a photo of a <shape>", **options), expected)


def test_several_prompts_and_pictures_and_a_negative_one(stock):
    escdiff.load_concept(stock.pipeline, stock.concept())
    prompts = ["a photo of a <shape>", "a <appearance> dog at sea"]  # as long: Sana repeats masks in another order
    noise = torch.randn(4, *stock.paint().shape[1:])
    two = stock.paint(prompts, num_images_per_prompt=2, latents=noise)
    for row, prompt in enumerate(prompts):
        for picture in range(2):
            index = 2 * row + picture
            alone = stock.paint(prompt, latents=noise[index : index + 1])
            torch.testing.assert_close(two[index : index + 1], alone, atol=1e-4, rtol=1e-3)
    options = {"true_cfg_scale": 3.0} if stock.name in ("flux", "qwen") else {"guidance_scale": 3.0}
    guided = [stock.paint(negative_prompt=text, **options) for text in ("a red dog", "a <appearance> dog")]
    assert not torch.equal(*guided)


def test_two_concepts_in_one_prompt(stock):
    escdiff.load_concept(stock.pipeline, stock.concept(shape="mug"))
    assert escdiff.load_concept(stock.pipeline, stock.concept(1, shape="dog"), "rex") == ("<rex-shape>", "<rex>")
    both, alone = stock.paint("a <shape> on a <rex>"), stock.paint("a mug on a <rex>")
    assert not torch.equal(both, alone)
    with pytest.raises(UserError, match="already"):
        escdiff.load_concept(stock.pipeline, stock.concept(shape="dog"), "rex")
    escdiff.unload_concept(stock.pipeline, "rex")
    with pytest.raises(UserError, match="unknown placeholder <rex>; known here: <shape>"):
        stock.paint("a <shape> on a <rex>")


def test_stages_are_walked(sd3):
    staged = sd3.concept(stages=(0, 500, 1000))
    escdiff.load_concept(sd3.pipeline, staged)
    both = sd3.paint()
    escdiff.unload_concept(sd3.pipeline)
    for stage in range(2):
        silent = {name: value.clone() for name, value in staged.vectors.items()}
        for value in silent.values():
            value[:, stage] = 0
        escdiff.load_concept(sd3.pipeline, Concept(**{**vars(staged), "vectors": silent}))
        assert not torch.equal(sd3.paint(), both)
        escdiff.unload_concept(sd3.pipeline)


@torch.no_grad()
def test_embeddings_of_other_tools_pass_beside_a_placeholder(sd3):
    escdiff.load_concept(sd3.pipeline, sd3.concept())
    asked = {"guidance_scale": 3.0}
    expected = sd3.paint(negative_prompt="a dog", **asked)
    prompts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), "a dog")
    made = sd3.pipeline.encode_prompt(**prompts, do_classifier_free_guidance=False, max_sequence_length=24)
    negative = {"negative_prompt_embeds": made[0], "negative_pooled_prompt_embeds": made[2]}
    assert torch.equal(sd3.paint(**asked, **negative), expected)


def test_a_pipeline_without_t5(sd3):
    sd3.pipeline.text_encoder_3 = sd3.pipeline.tokenizer_3 = None
    escdiff.load_concept(sd3.pipeline, sd3.concept())
    assert not torch.equal(sd3.paint(), sd3.paint("a photo of a red mug"))


def test_a_replaced_transformer_is_attached_in_the_next_call(sd3):
    escdiff.load_concept(sd3.pipeline, sd3.concept())
    before, old = sd3.paint(), sd3.pipeline.transformer
    sd3.pipeline.transformer = build("sd3")
    assert torch.equal(sd3.paint(), before)
    assert not any(module._forward_pre_hooks for module in old.modules())


def test_wrong_pairings_name_both_sides(stock):
    others = [Stock(name, make()) for name, make in PIPELINES.items() if name != stock.name]
    for other in others:
        with pytest.raises(UserError, match=f"family '{other.name}', the pipeline's .* family '{stock.name}'"):
            escdiff.load_concept(stock.pipeline, other.concept())
    with pytest.raises(UserError, match=f"made for 'tiny-{stock.name}' with"):
        escdiff.load_concept(make_backbone().pipeline(), stock.concept())
    assert "encode_prompt" not in vars(stock.pipeline)


def test_another_text_encoder_is_refused_unless_allowed(sd3):
    concept = sd3.concept()
    sd3.pipeline.text_encoder_3 = make_t5(seed=9)
    with pytest.raises(UserError, match=f"text encoder {concept.text_hash}, but the backbone has .*text encoder"):
        escdiff.load_concept(sd3.pipeline, concept)
    escdiff.load_concept(sd3.pipeline, concept, other_text_encoder=True)
    sd3.paint()


def test_a_family_without_a_door_is_refused(stock, monkeypatch):
    monkeypatch.setattr(type(stock.family), "reading", None)
    with pytest.raises(UserError, match="families sd, .*; others take packed prompts"):
        escdiff.load_concept(stock.pipeline, Stock("sd3", PIPELINES["sd3"]()).concept())


def test_a_controlnet_beside_is_refused(sd3):
    control = SD3ControlNetModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    controlled = StableDiffusion3ControlNetPipeline(**sd3.pipeline.components, controlnet=control)
    with pytest.raises(UserError, match="beside a ControlNet"):
        escdiff.load_concept(controlled, sd3.concept())


PART = Part("shape", "mug red", 1)


def test_spelling_keeps_the_places():
    spelled = spell("  A <x>, an <x> ", {"<x>": (PART, Part("appearance", "Dog", 1))}, lower=True)
    assert spelled.text == "a mug red dog, an mug red dog"
    assert [spelled.text[a:b] for _, a, b in spelled.places] == ["mug red", "dog"] * 2


@pytest.mark.parametrize("make", [make_t5_tokenizer, make_tokenizer])
def test_vectors_are_spread_over_their_words_tokens(make):
    tokenizer = make()
    start = int(make is make_tokenizer)
    found = locate(spell("a <x> on a", {"<x>": (Part("shape", "mug red", 2),)}), tokenizer, 24)
    assert [(k, token - start) for _, k, token in found] == [(0, 1), (1, 2)]
    with pytest.raises(UserError, match="'mug red' have 2 tokens for 3 vectors"):
        locate(spell("a <x>", {"<x>": (Part("shape", "mug red", 3),)}), tokenizer, 24)
    with pytest.raises(UserError, match="beyond the 4 tokens"):
        locate(spell("a photo of a <x>", {"<x>": (PART,)}), tokenizer, 4)


def test_an_attribute_needs_words(sd3):
    with pytest.raises(UserError, match="'shape' was given without words"):
        sd3.concept(shape=" ")


def test_the_hash_is_that_of_the_words():
    assert hash_text([make_clip()]) == hash_text([make_clip().bfloat16()]) != hash_text([make_clip(seed=1)])
