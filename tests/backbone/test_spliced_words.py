"""Learned words inside T5 and Gemma: layers of PixArt and Sana read what the text encoder makes of their own."""

import pytest
import torch
from transformer_pipelines import PIPELINES, paint

import escdiff
from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.family.splicing import spliced
from escdiff.backbone.transformer import TransformerBackbone
from escdiff.concept import Concept
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError

PROMPT, LENGTH = "a photo of a <concept> on a beach", 48


@pytest.fixture(params=["pixart", "sana"])
def backbone(request) -> TransformerBackbone:
    backbone = TransformerBackbone(PIPELINES[request.param](), f"tiny-{request.param}", splice_words=True)
    backbone.prompts.given["max_sequence_length"] = LENGTH
    return backbone


def learned(backbone: TransformerBackbone, kind: type = XTI, seed: int = 0):
    method = kind(backbone, init="mug", keep_norm=False)
    with torch.no_grad():
        method.table += torch.randn(method.table.shape, generator=torch.Generator().manual_seed(seed))
    return method


def load(backbone: TransformerBackbone, method, texts: list[str], **changed) -> dict[str, torch.Tensor]:
    """What the model is given, while nothing stays attached."""
    feed = backbone.feed(method.space, method.words, {"concept": method.anchor("concept")})
    vectors = {f"<{a}>": value for a, value in (method.vectors({}) | changed).items()}
    feed.remove()
    return feed.load(texts, vectors, torch.zeros(len(texts), dtype=torch.long))


def layers_read(backbone: TransformerBackbone, text: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The text that each block is given (B, T, W)."""
    seen, handles = [], []
    names = ("hidden_states", "attention_mask", "encoder_hidden_states")  # Sana gives its blocks positional arguments
    with backbone.family.attach(backbone.denoiser, backbone.p_plus()):
        for name in backbone.p_plus().layer_names:
            handles.append(
                backbone.denoiser.get_submodule(name).register_forward_pre_hook(
                    lambda module, args, kwargs: seen.append((dict(zip(names, args, strict=False)) | kwargs)[TEXT]),
                    with_kwargs=True,
                )
            )
        noisy = torch.zeros(len(text[TEXT]), backbone.denoiser.config.in_channels, 8, 8)
        backbone.predict(noisy, torch.full((len(noisy),), 500), text)
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def test_each_layer_reads_the_text_with_its_own_word(backbone):
    method = learned(backbone)
    read = layers_read(backbone, load(backbone, method, [PROMPT]))
    words = PROMPT.replace("<concept>", "mug")
    plain = backbone.prompts.encoded(words)
    real = int(plain["encoder_attention_mask"].sum())
    before = backbone.family.reading.streams[0].frame
    prefix = before(backbone.stock, backbone.prompts.given)[0] if before else ""
    start = len(prefix) + words.index("mug")
    marks = backbone.stock.tokenizer(prefix + words, return_offsets_mapping=True)["offset_mapping"]
    at = torch.tensor([i for i, (a, b) in enumerate(marks) if a < start + 3 and b > start and b > a])
    for layer, given in enumerate(read):
        more = (method.table[layer, 0] - method.anchor("concept")).expand(len(at), -1)[None]
        with spliced(backbone.stock.text_encoder, more, at):
            states = backbone.prompts._read([words])[0]
        expected = backbone.family.enter(backbone.denoiser, states)
        torch.testing.assert_close(given[:, :real], expected[:, :real], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(given[:, :real], backbone.family.enter(backbone.denoiser, plain[TEXT])[:, :real])


@torch.no_grad()
def test_the_anchor_alone_is_the_stock_text(backbone):
    method = XTI(backbone, init="mug", keep_norm=False)
    read = layers_read(backbone, load(backbone, method, [PROMPT]))
    stock = backbone.family.enter(backbone.denoiser, backbone.prompts.encoded(PROMPT.replace("<concept>", "mug"))[TEXT])
    for given in read:
        torch.testing.assert_close(given, stock, atol=1e-6, rtol=1e-6)


def test_gradients_reach_every_layers_word(backbone):
    method = learned(backbone)
    read = layers_read(backbone, load(backbone, method, [PROMPT] * 2))
    sum(text.square().sum() for text in read).backward()
    assert (method.table.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(weight.grad is None for weight in backbone.stock.text_encoder.parameters())


@torch.no_grad()
def test_a_batch_is_its_texts_one_by_one(backbone):
    method, texts = learned(backbone), [PROMPT, "one <concept>"]
    own = torch.cat([method.table[None], method.table[None] + 1])
    both = layers_read(backbone, load(backbone, method, texts, concept=own))
    for row in range(2):
        alone = layers_read(backbone, load(backbone, method, texts[row : row + 1], concept=own[row : row + 1]))
        real = int(backbone.prompts.encoded(texts[row].replace("<concept>", "mug"))["encoder_attention_mask"].sum())
        for ours, theirs in zip(alone, both, strict=True):  # what is behind is masked
            torch.testing.assert_close(ours[:, :real], theirs[row : row + 1, :real], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_one_word_for_all_layers_is_encoded_once(backbone, monkeypatch):
    calls, stock = [], backbone.stock.encode_prompt
    monkeypatch.setattr(
        backbone.stock, "encode_prompt", lambda **given: calls.append(given["prompt"]) or stock(**given)
    )
    load(backbone, learned(backbone, TI), [PROMPT] * 3)
    words = PROMPT.replace("<concept>", "mug")
    assert calls == [[words], [words]]  # as it is, and with the learned word


def test_stored_and_painted_by_the_stock_pipeline(backbone, tmp_path):
    method = learned(backbone)
    method.concept().save(tmp_path / "c.safetensors")
    concept = Concept.load(tmp_path / "c.safetensors")
    assert (concept.entry, concept.words, concept.width) == ("text encoder", {"concept": "mug"}, backbone.prompts.width)
    stock, name = backbone.stock, backbone.family.name
    plain = paint(name, stock, "a red mug", max_sequence_length=LENGTH)
    escdiff.load_concept(stock, concept)
    with_it = paint(name, stock, ["a red <concept>", "a dog"], num_images_per_prompt=2, max_sequence_length=LENGTH)
    assert not torch.equal(with_it[:1], plain)
    escdiff.unload_concept(stock)
    escdiff.load_concept(stock, concept.scaled(0.0))
    torch.testing.assert_close(paint(name, stock, "a red <concept>", max_sequence_length=LENGTH), plain)
    away = paint(name, stock, "a red mug", negative_prompt="a <concept>", max_sequence_length=LENGTH)
    torch.testing.assert_close(
        away, paint(name, stock, "a red mug", negative_prompt="a mug", max_sequence_length=LENGTH)
    )
    escdiff.unload_concept(stock)
    assert torch.equal(paint(name, stock, "a red mug", max_sequence_length=LENGTH), plain)


def test_what_does_not_go_together_is_refused(backbone):
    with pytest.raises(UserError, match="splice_words=true given for 'tiny' of the family 'flux'.*pixart, sana"):
        TransformerBackbone(PIPELINES["flux"](), "tiny", splice_words=True)
    stock, spliced_in = backbone.stock, learned(backbone).concept()
    layers = learned(TransformerBackbone(stock, backbone.name)).concept()
    escdiff.load_concept(stock, spliced_in, name="one")
    with pytest.raises(UserError, match="vectors enter the layers, those of the loaded one do not"):
        escdiff.load_concept(stock, layers, name="two")
    escdiff.unload_concept(stock)
    with pytest.raises(UserError, match="vectors in the text encoder"):
        spliced_in.blend(layers, 0.5)
