import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from escdiff.encoder.vision import OpenClipVision, TransformersVision, load_vision
from escdiff.errors import UserError

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


def test_pixels_get_the_towers_own_statistics(tmp_path):
    vision = TransformersVision(CLIPVisionModel(CLIPVisionConfig(**VISION)), "x")
    black = vision.prepare(torch.full((1, 3, 64, 64), -1.0))
    assert torch.allclose(black[0, :, 0, 0], torch.tensor([-0.48145466, -0.4578275, -0.40821073]) / vision.std.view(3))


@pytest.mark.parametrize("spec", ["/nowhere/clip", "open_clip:No-Such-Model/openai"])
def test_a_tower_that_is_not_there_is_refused_in_one_sentence(spec):
    with pytest.raises(UserError, match="from '"):
        load_vision(spec)
