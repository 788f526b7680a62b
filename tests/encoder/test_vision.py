import json

import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder.vision import OpenClipVision, TransformersVision, load_vision
from escdiff.support.errors import UserError

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip


def test_a_transformers_tower_gives_patch_tokens_of_every_depth(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    vision = load_vision(str(tmp_path))
    assert (vision.width, vision.num_depths, vision.num_patches, vision.image_size) == (16, 3, 16, 64)
    tokens = vision(torch.rand(2, 3, 50, 70) * 2 - 1)
    assert [tuple(t.shape) for t in tokens] == [(2, 16, 16)] * 3
    assert not any(p.requires_grad for p in vision.parameters()) and not vision.training


def test_the_vision_half_of_a_whole_clip_is_the_same_tower(tmp_path):
    text = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = CLIPVisionConfig(**VISION)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    ours = load_vision(str(tmp_path))
    own = model.vision_model(pixel_values=ours.prepare(pixels), output_hidden_states=True).hidden_states
    *tokens, embedding = ours(pixels, embed=True)
    for a, b in zip(tokens, own[1:], strict=True):
        assert torch.equal(a, b[:, 1:])
    both = model(input_ids=torch.tensor([[49406, 539, 49407]]), pixel_values=ours.prepare(pixels))
    assert torch.allclose(embedding[:, 0], both.image_embeds) and ours.embedding_width == 24


def test_an_open_clip_tower_gives_patch_tokens_of_every_depth():
    tower = open_clip.model.CLIPVisionCfg(layers=3, width=64, head_width=32, patch_size=16, image_size=64)
    text = open_clip.model.CLIPTextCfg(width=32, heads=2, layers=1)
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=32, vision_cfg=tower, text_cfg=text)
    vision = OpenClipVision(model.visual, "open_clip:tiny").freeze()
    assert (vision.width, vision.num_depths, vision.num_patches, vision.image_size) == (64, 3, 16, 64)
    assert vision(torch.zeros(2, 3, 64, 64))[0].shape == (2, 16, 64)
    pixels = torch.rand(2, 3, 64, 64)
    embedding = vision(pixels, embed=True)[-1]
    assert torch.allclose(embedding[:, 0], model.encode_image(vision.prepare(pixels), normalize=True), atol=1e-6)
    assert vision.embedding_width == 32


OPEN_CLIP = {"layers": 3, "width": 64, "patch_size": 16, "image_size": 64}
TAGS = {"ViT-L-14/openai": True, "ViT-L-14/laion2b_s32b_b82k": False, "ViT-B-16/dfn2b": True}


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("tag", TAGS)
def test_both_libraries_towers_agree_on_the_weights_of_a_tag(tag, quick, tmp_path, monkeypatch):
    """open_clip's tower of the tag's own activation, in a tiny architecture, against transformers' on equal weights."""
    architecture, _ = tag.split("/")
    vision, text = {**OPEN_CLIP, "head_width": 32}, {"width": 32, "heads": 2, "layers": 1}
    described = json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text})
    (tmp_path / f"tiny-{architecture}.json").write_text(described, encoding="utf-8")
    open_clip.add_model_config(tmp_path)
    build = open_clip.create_model
    with monkeypatch.context() as patch:  # the real weights stay on their server, and their size, too
        small = lambda name, pretrained, **options: build(f"tiny-{name}", load_weights=False, **options)  # noqa: E731
        patch.setattr(open_clip, "create_model", small)
        torch.manual_seed(0)
        ours = load_vision(f"open_clip:{tag}")
    act = "quick_gelu" if quick else "gelu"
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2,
                              image_size=64, patch_size=16, hidden_act=act)  # fmt: skip
    theirs = CLIPVisionModel(config)
    theirs.load_state_dict(as_transformers(ours.visual.state_dict(), theirs.state_dict()))
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        pairs = zip(ours(pixels), TransformersVision(theirs, "x").freeze()(pixels), strict=True)
    same = all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    assert same == (quick == TAGS[tag])


def as_transformers(state, names):
    """open_clip's weights of a vision tower under transformers' names."""
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in names) else ""
    found = {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for end in ("weight", "bias"):
        found |= {f"pre_layrnorm.{end}": state[f"ln_pre.{end}"], f"post_layernorm.{end}": state[f"ln_post.{end}"]}
        for i in range(3):
            block, layer = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            for part, own in zip("qkv", state[f"{block}.attn.in_proj_{end}"].chunk(3), strict=True):
                found[f"{layer}.self_attn.{part}_proj.{end}"] = own
            pairs = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                     "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
            found |= {f"{layer}.{a}.{end}": state[f"{block}.{b}.{end}"] for a, b in pairs.items()}
    found = {prefix + name: value for name, value in found.items()}
    return found | {name: value for name, value in names.items() if "position_ids" in name}


def test_a_tower_in_half_precision_prepares_pictures_in_full(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 50, 70) * 2 - 1
    full, half = load_vision(str(tmp_path)), load_vision(str(tmp_path)).cast(torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(full.prepare(pixels), half.prepare(pixels))
    for a, b in zip(full(pixels), half(pixels), strict=True):
        assert b.dtype == torch.bfloat16 and torch.allclose(a, b.float(), atol=0.05 * a.abs().max().item())


def test_pixels_get_the_towers_own_statistics(tmp_path):
    vision = TransformersVision(CLIPVisionModel(CLIPVisionConfig(**VISION)), "x")
    black = vision.prepare(torch.full((1, 3, 64, 64), -1.0))
    assert torch.allclose(black[0, :, 0, 0], torch.tensor([-0.48145466, -0.4578275, -0.40821073]) / vision.std.view(3))


@pytest.mark.parametrize("spec", ["/nowhere/clip", "open_clip:No-Such-Model/openai"])
def test_a_tower_that_is_not_there_is_refused_in_one_sentence(spec):
    with pytest.raises(UserError, match=r"cannot be loaded|from '"):
        load_vision(spec)
