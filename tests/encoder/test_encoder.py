import json

import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone.branches import Branches, add_branches, branch_parameters, remove_branches, set_branches
from escdiff.concept import ATTRIBUTES
from escdiff.data.colours import to_rgb
from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    settings = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=64, patch_size=16
    )
    CLIPVisionModel(settings).save_pretrained(folder)
    return str(folder)


def build(folder, backbone, **options):
    torch.manual_seed(0)
    config = EncoderConfig(vision=folder, features=32, rank=3, **options)
    return ConceptEncoder.for_backbone(config, load_vision(folder), backbone, backbone.p_plus()).eval()


@pytest.fixture
def encoder(folder, tiny_backbone):
    return build(folder, tiny_backbone)


def pictures(count=3):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_vectors_per_attribute_layer_and_token(encoder):
    out = encoder(pictures(), pictures())
    assert {a: tuple(v.shape) for a, v in out.items()} == {"shape": (3, 16, 1, 2, 32), "appearance": (3, 16, 1, 6, 32)}
    assert set(encoder(shape_pixels=pictures())) == {"shape"}
    with pytest.raises(UserError, match="no reference image"):
        encoder()


def test_customization_is_one_forward_pass_without_gradients(encoder):
    grads = []
    hook = encoder.vision.register_forward_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    concept = encoder.encode(Image.new("RGB", (90, 70), "red"))
    hook.remove()
    assert grads == [False]
    assert not any(v.requires_grad for v in concept.vectors.values())
    assert all(p.grad is None for p in encoder.parameters())


def test_transparency_is_the_mask_of_a_picture(encoder):
    icon = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    icon.paste((255, 255, 255, 255), (16, 8, 48, 40))
    mask = torch.zeros(1, 64, 64)
    mask[:, 8:40, 16:48] = 1
    found, blank = encoder.encode(icon), encoder.encode(Image.new("RGB", (64, 64), "white"))
    wanted = encoder.encode(to_rgb(icon), mask)
    assert all(torch.equal(found.vectors[a], wanted.vectors[a]) for a in ATTRIBUTES)
    assert not any(torch.equal(found.vectors[a], blank.vectors[a]) for a in ATTRIBUTES)


def test_two_references_are_still_one_call_of_the_tower(encoder):
    calls = []
    hook = encoder.vision.register_forward_hook(lambda *_: calls.append(1))
    both = encoder(pictures(), pictures().flip(0))
    hook.remove()
    assert len(calls) == 1
    alone = encoder(appearance_pixels=pictures().flip(0))
    assert torch.allclose(both["appearance"], alone["appearance"], atol=1e-6)


def test_a_batch_gives_what_one_by_one_gives(encoder):
    whole = encoder(pictures(), pictures())
    for i in range(3):
        one = encoder(pictures()[i : i + 1], pictures()[i : i + 1])
        assert all(torch.allclose(whole[a][i : i + 1], one[a], atol=1e-6) for a in ATTRIBUTES)


def test_gradients_reach_every_trained_weight_and_not_the_tower(encoder):
    encoder.train()
    dropped = torch.tensor([True, False, False])
    tokens = encoder.tokens(pictures())
    total = 0
    for a in ATTRIBUTES:
        total += encoder.vectors(a, encoder.residuals(a, encoder.features(a, tokens), dropped)).square().sum()
    total.backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # The nulls start at zero beside a zero-free anchor, so even they must move.
    assert silent == []
    assert all(p.grad is None for p in encoder.vision.parameters())


def test_a_closed_gate_leaves_the_anchor_and_a_hand_split_divides_the_layers(folder, tiny_backbone, encoder):
    with torch.no_grad():
        encoder.gate_logits["shape"].fill_(-40)
    out = encoder(shape_pixels=pictures())["shape"]
    assert torch.allclose(out, encoder.anchor("shape").expand_as(out), atol=1e-6)
    hand = build(folder, tiny_backbone, gates="hand").gates()
    assert hand["shape"].squeeze().nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert torch.equal(hand["shape"] + hand["appearance"], torch.ones(16, 1))
    assert build(folder, tiny_backbone, gates="none").gates()["appearance"].min() == 1


def test_dropped_attributes_become_the_learned_null(encoder):
    with torch.no_grad():
        encoder.nulls["shape"].fill_(0.5)
    features = encoder.features("shape", encoder.tokens(pictures()))
    out = encoder.residuals("shape", features, torch.tensor([True, False, True]))
    assert torch.allclose(out[0], out[2]) and not torch.allclose(out[0], out[1])


def test_save_and_load_give_the_same_concept(encoder, tmp_path, tiny_backbone):
    encoder.save_pretrained(tmp_path)
    again = ConceptEncoder.from_pretrained(tmp_path, tiny_backbone)
    first, second = (e.encode(pictures()[0]) for e in (encoder, again))
    for a in ATTRIBUTES:
        assert torch.allclose(first.vectors[a], second.vectors[a], atol=2e-3)  # weights travel as float16
    resaved = tmp_path / "again"
    again.save_pretrained(resaved)
    exact = ConceptEncoder.from_pretrained(resaved).encode(pictures()[0])
    assert all(torch.equal(exact.vectors[a], second.vectors[a]) for a in ATTRIBUTES)
    assert "one forward pass" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_scale_of_real_words_travels_with_the_checkpoint(folder, tmp_path, tiny_backbone):
    made = build(folder, tiny_backbone, branches="routed", residual_scale=0.5)
    unit = torch.stack([tiny_backbone.prompts.word_embedding(word).norm() for word in ("object", "colored")]).mean()
    assert torch.isclose(made.embedding_scale, unit / 2) and torch.isclose(made.word_scale, unit)
    made.save_pretrained(tmp_path)
    again = ConceptEncoder.from_pretrained(tmp_path, tiny_backbone)
    assert again.config == made.config and torch.isclose(again.embedding_scale, unit / 2, rtol=1e-3)


@pytest.mark.parametrize("option", ["gates", "branches"])
def test_choices_that_are_not_there_are_refused(folder, tiny_backbone, option):
    with pytest.raises(UserError, match=f"encoder.{option}=soft given; expected"):
        build(folder, tiny_backbone, **{option: "soft"})


def test_another_backbone_is_refused_before_weights_are_read(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    other = tiny.make_backbone(unet=tiny.make_unet(width=64), text_encoder=tiny.make_text_encoder(width=64), name="big")
    with pytest.raises(UserError, match="tiny .*width 32.*big has width 64"):
        ConceptEncoder.from_pretrained(tmp_path, other)
    stranger = tiny.make_backbone(text_encoder=tiny.make_text_encoder(seed=9), name="stranger")
    with pytest.raises(UserError, match="text encoder"):
        ConceptEncoder.from_pretrained(tmp_path, stranger)


def test_damaged_checkpoints_are_refused_in_one_sentence(encoder, tmp_path):
    with pytest.raises(UserError, match="no encoder in"):
        ConceptEncoder.from_pretrained(tmp_path / "none")
    encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="cannot be read"):
        ConceptEncoder.from_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(about | {"encoder": {"_target_": "os.system"}}), encoding="utf-8")
    with pytest.raises(UserError, match="no encoder of this version"):
        ConceptEncoder.from_pretrained(tmp_path)


def test_depths_the_tower_lacks_are_refused(folder, tiny_backbone):
    with pytest.raises(UserError, match="depth 7 .* has 0..3"):
        build(folder, tiny_backbone, shape_depths=(7,))
    with pytest.raises(UserError, match="depth -1 .* has 0..3"):
        build(folder, tiny_backbone, appearance_depths=(-1, 2))


def test_branches_switch_and_leave_the_stock_unet_bit_identical(tmp_path):
    unet, inputs = tiny.make_unet(), (torch.ones(1, 8, 16, 16), 5, torch.ones(1, 77, 32))
    with torch.no_grad():
        stock = unet(*inputs).sample
        add_branches(unet, rank=2)
        assert torch.allclose(unet(*inputs).sample, stock, atol=1e-6)  # they start as no change
        for name in ATTRIBUTES:
            for p in branch_parameters(unet, name):
                p.fill_(0.1)
        full = unet(*inputs).sample
        set_branches(unet, {"shape": 1.0})
        half = unet(*inputs).sample
        assert not torch.allclose(full, stock) and not torch.allclose(half, full)
        set_branches(unet, {})
        assert torch.equal(unet(*inputs).sample, stock)
        set_branches(unet, {"shape": 1.0, "appearance": 1.0})
        Branches.of(unet).save(tmp_path)
        remove_branches(unet)
        assert torch.equal(unet(*inputs).sample, stock)
        Branches.read(tmp_path).put(unet)
        assert torch.allclose(unet(*inputs).sample, full, atol=1e-6)
        with pytest.raises(UserError, match="another U-Net"):
            Branches.read(tmp_path).put(tiny.make_unet(width=64))
