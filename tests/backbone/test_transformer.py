"""A frozen transformer as trainings ask it, on tiny stock pipelines of every family."""

import pytest
import torch
from transformer_pipelines import PIPELINES, paint

from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.transformer import TransformerBackbone
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError

STOCK = {"guidance_scale": 1.0}  # without guidance
LENGTH = 24


def make(name: str) -> TransformerBackbone:
    backbone = TransformerBackbone(PIPELINES[name](), f"tiny-{name}")
    backbone.prompts.given["max_sequence_length"] = LENGTH
    return backbone


@pytest.fixture(params=list(PIPELINES))
def backbone(request) -> TransformerBackbone:
    return make(request.param)


def vectors_of(backbone: TransformerBackbone, vectors: int = 1, batch: int = 1) -> dict[str, torch.Tensor]:
    """Random ones, off the word."""
    found = torch.randn(batch, backbone.p_plus().num_layers, 1, vectors, backbone.width)
    return {"<concept>": backbone.prompts.word_embedding("mug", vectors) + found}


def feed_of(backbone: TransformerBackbone):
    return backbone.feed(backbone.p_plus(), {"concept": "mug"}, {"concept": backbone.prompts.word_embedding("mug", 1)})


def predict(backbone: TransformerBackbone, texts: list[str], vectors: dict, noisy: torch.Tensor, times: torch.Tensor):
    feed = feed_of(backbone)
    try:
        return backbone.predict(noisy, times, feed.load(texts, vectors, torch.zeros(len(texts), dtype=torch.long)))
    finally:
        feed.remove()


@torch.no_grad()
def test_training_calls_the_model_as_the_stock_pipeline_does(backbone):
    seen = []
    handle = backbone.denoiser.register_forward_hook(
        lambda model, args, kwargs, output: seen.append((args, kwargs, output[0])), with_kwargs=True
    )
    paint(backbone.family.name, backbone.stock, "a photo of a mug", **STOCK)
    handle.remove()
    args, kwargs, output = seen[0]
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    noisy = backbone.family.latents.unpack(latents, 8, 8)
    times = kwargs["timestep"] * backbone.family.time_factor(backbone.denoiser)
    ours = backbone.predict(noisy, times, backbone.prompts.encoded("a photo of a mug"))
    expected = backbone.family.latents.unpack(output, 8, 8)[:, : noisy.shape[1]]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_anchor_word_alone_is_the_stock_prediction(backbone):
    noisy, times = torch.randn(2, backbone.sample_latents(moments(backbone)).shape[1], 8, 8), torch.tensor([900, 100])
    anchor = backbone.prompts.word_embedding("mug", 1)
    nothing = {"<concept>": anchor.expand(1, 1, 1, 1, -1)}
    words = backbone.prompts.encoded("a photo of a mug")
    stock = backbone.predict(noisy, times, {name: value.expand(2, *value.shape[1:]) for name, value in words.items()})
    assert torch.equal(predict(backbone, ["a photo of a <concept>"] * 2, nothing, noisy, times), stock)
    assert not torch.equal(predict(backbone, ["a photo of a <concept>"] * 2, vectors_of(backbone), noisy, times), stock)
    assert not any(module._forward_pre_hooks for module in backbone.denoiser.modules())


def moments(backbone: TransformerBackbone) -> torch.Tensor:
    return backbone.moments(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_a_batch_is_its_texts_one_by_one(backbone):
    """Also where texts differ in length and samples in their vectors."""
    texts, vectors = ["a <concept>", "one red <concept> on it"], vectors_of(backbone, 2, batch=2)
    noisy, times = torch.randn(2, backbone.sample_latents(moments(backbone)).shape[1], 8, 8), torch.tensor([900, 100])
    both = predict(backbone, texts, vectors, noisy, times)
    for row in range(2):
        part = slice(row, row + 1)
        own = {name: value[part] for name, value in vectors.items()}
        alone = predict(backbone, texts[part], own, noisy[part], times[part])
        torch.testing.assert_close(alone, both[part], atol=2e-5, rtol=1e-3)


@torch.no_grad()
def test_copies_of_a_sample_share_its_text(backbone):
    feed = feed_of(backbone)
    stage = torch.zeros(2, dtype=torch.long)
    texts, vectors = ["a <concept>", "a red <concept>"], vectors_of(backbone, batch=2)
    once, twice = feed.load(texts, vectors, stage), feed.load(texts, vectors, stage, 2)
    feed.remove()
    for name, value in once.items():
        assert torch.equal(twice[name], value.repeat_interleave(2, 0))


def test_latents_of_every_vae(backbone):
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    found = backbone.moments(pixels)
    latents = backbone.sample_latents(found)
    assert latents.shape == (2, found.shape[1] // 2, 64 // backbone.vae_factor, 64 // backbone.vae_factor)
    with torch.no_grad():
        assert backbone.decode(latents).shape == pixels.shape
    assert backbone.family.latents.pack(latents).ndim == (3 if backbone.side_step > backbone.vae_factor else 4)


def test_a_text_is_encoded_once(backbone, monkeypatch):
    calls, stock = [], backbone.stock.encode_prompt
    monkeypatch.setattr(backbone.stock, "encode_prompt", lambda **given: calls.append(given) or stock(**given))
    for seed in range(3):
        torch.manual_seed(seed)
        feed = feed_of(backbone)
        feed.load(["a <concept>"] * 2, vectors_of(backbone), torch.zeros(2, dtype=torch.long))
        feed.remove()
    assert [call["prompt"] for call in calls] == [["mug"], ["a mug"]]


def test_a_cast_encodes_anew_and_the_hash_stays():
    backbone = make("pixart")
    before, kept = backbone.text_hash, backbone.prompts.encoded("a mug")[TEXT]
    assert backbone.to(dtype=torch.bfloat16).text_hash == before == make("pixart").text_hash
    assert kept.dtype == torch.float32 and backbone.prompts.encoded("a mug")[TEXT].dtype == torch.bfloat16


def test_text_encoders_may_stay_where_they_are():
    backbone = TransformerBackbone(PIPELINES["pixart"](), "tiny", offload_text=True)
    backbone.to("meta")
    assert backbone.stock.text_encoder.device.type == "cpu" and backbone.device.type == "meta"
    assert backbone.prompts.encoded("a mug")[TEXT].device.type == "meta"


def test_tied_layers_share_their_vectors(backbone):
    tied, each = TI(backbone, init="mug"), XTI(backbone, init="mug")
    torch.nn.init.normal_(tied.table)
    with torch.no_grad():
        each.table.copy_(tied.table.expand_as(each.table))
    conditions = []
    for method in (tied, each):
        feed = backbone.feed(method.space, method.words, {"concept": method.anchor("concept")})
        vectors = {f"<{a}>": value for a, value in method.vectors({}).items()}
        conditions.append(feed.load(["a <concept>"], vectors, torch.zeros(1, dtype=torch.long))[TEXT])
        feed.remove()
    assert torch.equal(*conditions)


@pytest.mark.parametrize(("ask", "sentence"), [
    (lambda b: b.unet, "a U-Net is needed, but the backbone 'tiny-pixart' is a transformer of the family 'pixart'"),
    (lambda b: XTI(b, density=0.1), "density=0.1 given; the vectors of 'tiny-pixart' stand behind"),
    (lambda b: XTI(b, init=" "), "has no token"),
    (lambda b: predict(b, ["a <shape>"], vectors_of(b), torch.zeros(1, 4, 8, 8), torch.tensor([1])), "<shape>"),
    (lambda b: b.predict(torch.zeros(1, 4, 8, 8), torch.tensor([1]), {}, image=1), "takes no image adapter"),
])  # fmt: skip
def test_what_transformers_lack_is_refused(ask, sentence):
    with pytest.raises(UserError, match=sentence):
        ask(make("pixart"))
