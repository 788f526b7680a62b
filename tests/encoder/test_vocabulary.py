"""Words that CLIP reads off a picture, and what the encoder makes of them."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.encoder.vision import embed_texts
from escdiff.mini.parts import make_tokenizer
from escdiff.support.errors import UserError

WORDS = ["red cube", "green ball", "mug"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = CLIPTextConfig(**common, num_hidden_layers=1, eos_token_id=49407)
    vision = CLIPVisionConfig(**common, num_hidden_layers=4, image_size=64, patch_size=16)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def build(folder, backbone, **options):
    torch.manual_seed(0)
    config = EncoderConfig(vision=folder, features=32, rank=3, vocabulary={"shape": WORDS}, **options)
    return ConceptEncoder.for_backbone(config, load_vision(folder), backbone, backbone.p_plus()).eval()


def pixels():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_the_shares_are_clips_own_probabilities(folder, tiny_backbone):
    encoder = build(folder, tiny_backbone, templates=("a {}",))
    model, texts = CLIPModel.from_pretrained(folder).eval(), [f"a {word}" for word in WORDS]
    ids = make_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = model(**ids, pixel_values=encoder.vision.prepare(pixels())).logits_per_image.softmax(-1)
    features = encoder.features("shape", encoder.tokens(pixels()))
    assert features.shape == (3, 32 + 3) and torch.allclose(features[:, 32:], own, atol=1e-5)
    assert encoder.features("appearance", encoder.tokens(pixels())).shape == (3, 32)


@pytest.mark.slow
def test_templates_are_averaged_on_the_sphere(folder):
    one, two = (embed_texts(folder, [text])[0] for text in ("a mug", "the mug"))
    from escdiff.encoder.vocabulary import Vocabulary

    found = Vocabulary(1, 24, 2, 32)
    found.set(folder, ["mug"], ("a {}", "the {}"), torch.zeros(1, 2, 32))
    assert torch.allclose(found.texts / found.texts.norm(), (one + two) / (one + two).norm(), atol=1e-6)


def test_an_untrained_head_says_the_word_that_was_read(folder, tiny_backbone):
    """Vectors are the word's own embeddings where CLIP is sure, whatever the head was trained on."""
    encoder = build(folder, tiny_backbone)
    head = encoder.heads["shape"]
    for p in head.parameters():
        p.data.zero_()
    features = torch.cat([torch.zeros(3, 32), torch.eye(3)], 1)
    vectors = encoder.anchor("shape") + encoder.residuals("shape", features)
    for vector, word in zip(vectors, WORDS, strict=True):
        expected = tiny_backbone.prompts.spread(word, 2).expand_as(vector)
        assert torch.allclose(vector, expected, atol=1e-5)


def test_the_words_travel_with_the_checkpoint(folder, tiny_backbone, tmp_path):
    encoder = build(folder, tiny_backbone)
    encoder.save_pretrained(tmp_path)
    again = ConceptEncoder.from_pretrained(tmp_path, tiny_backbone)
    assert again.config == encoder.config
    first, second = (e.encode(pixels()[0]).vectors["shape"] for e in (encoder, again))
    assert torch.allclose(first, second, atol=2e-3)


def test_what_it_needs_is_said(folder, tiny_backbone, tmp_path):
    with pytest.raises(UserError, match="without its text half"):
        settings = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2)
        CLIPVisionModel(settings).save_pretrained(tmp_path)
        embed_texts(str(tmp_path), ["mug"])
    with pytest.raises(UserError, match="encoder.vocabulary=.*size.* given; expected the keys shape, appearance"):
        config = EncoderConfig(vision=folder, vocabulary={"size": WORDS})
        ConceptEncoder.for_backbone(config, load_vision(folder), tiny_backbone, tiny_backbone.p_plus())
