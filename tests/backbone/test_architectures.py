"""Tiny SD 1.5-, 2.1- and SDXL-shaped models from disk, and the real configurations without their weights."""

import shutil
import time

import diffusers
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from ldm_layout import save_single_file
from painting import PROMPT, arrays, make_concept
from safetensors.torch import save_file
from test_backbone import assert_same
from transformers import AutoConfig, CLIPTextModel

from escdiff.backbone import backbone, load_backbone, loading_options, read_blueprint
from escdiff.backbone import identify as blueprint
from escdiff.backbone.identify import ARCHITECTURES
from escdiff.conditioning import ConditioningSpace, bind, cross_attention_layers
from escdiff.encoder.checkpoint import bundled_folder, read_config
from escdiff.pipelines.generate import generate
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError

SHAPES = {"sd15": tiny.make_backbone, "sd21": tiny.make_sd21, "sdxl": tiny.make_sdxl}
GROUPS = {"sd15": (16, 16), "sd21": (16, 16), "sdxl": (70, 11)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_tiny_model_end_to_end(name, tmp_path):
    """Saved, found, loaded, customized: the same as in memory, and the stock pipeline without a concept."""
    made = SHAPES[name]()
    made.pipeline().save_pretrained(tmp_path / "model")
    plan = read_blueprint(tmp_path / "model")
    backbone = load_backbone(plan)
    assert_same(backbone, made)
    assert plan.p_plus() == backbone.p_plus() and plan.width == backbone.width and plan.is_xl == backbone.is_xl
    concept = make_concept(backbone)
    pictures = arrays(generate(backbone, [PROMPT, "a cat"], concept, steps=2))
    assert torch.equal(pictures, arrays(generate(made, [PROMPT, "a cat"], concept, steps=2)))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    stock = pipeline(["a cat"], num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator().manual_seed(1))
    assert (arrays(stock.images)[0] - pictures[1]).abs().max() <= 1  # sums of a batch of two are rounded otherwise
    with torch.no_grad():
        noisy = torch.randn(2, 8, 16, 16)
        grid = backbone.prompts.encode([PROMPT] * 2, concept.placeholders())
        with bind(backbone.unet, concept.space):
            out = backbone.predict(noisy, torch.tensor([10, 900]), grid[:, :, 0].flatten(1, 2))
    assert out.shape == noisy.shape and torch.isfinite(out).all()


def test_prompts_of_sdxl_equal_its_pipeline():
    backbone = tiny.make_sdxl()
    prompts = ["a photo of a mug", "two mugs!"]
    states, _, pooled, _ = backbone.pipeline().encode_prompt(prompts, do_classifier_free_guidance=False)
    grid, ours = backbone.prompts.encode_pooled(prompts)
    assert torch.equal(grid[:, 0, 0], states) and torch.equal(ours, pooled)
    vectors = {"<shape>": backbone.prompts.word_embedding("photo")[None, None, None].expand(1, 11, 1, 1, -1)}
    spliced, pooled_of_cells = backbone.prompts.encode_pooled(["a <shape> of a mug"], vectors)
    torch.testing.assert_close(spliced[0, 5, 0], states[0])
    torch.testing.assert_close(pooled_of_cells[0], pooled[0])


def test_half_precision_files_variants_and_offline(tiny_backbone, tmp_path):
    half = tiny.copied(tiny_backbone).pipeline().to(dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    options = loading_options(BackboneConfig(variant="fp16", offline=True, prediction_type="v_prediction"))
    backbone = load_backbone(tmp_path, dtype=torch.bfloat16, **options)
    assert backbone.text_hash == tiny_backbone.text_hash and backbone.dtype == torch.bfloat16
    assert backbone.noise.schedule.config.prediction_type == "v_prediction"
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tmp_path)  # it has that variant only
    with pytest.raises(UserError, match="epsilon, v_prediction or sample"):
        compose("infer", ["backbone.prediction_type=noise"])


def test_a_single_file_says_what_it_is(tmp_path, tiny_backbone, tiny_folder):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for width, name in ((768, "sd15"), (1024, "sd21"), (2048, "sdxl")):
        save_file({key: torch.zeros(2, width)}, tmp_path / "m.safetensors")
        plan = read_blueprint(tmp_path / "m.safetensors")
        assert plan.config == str(ARCHITECTURES / name) and plan.width == width
    save_file({key: torch.zeros(2, 32)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="width 32; expected .* 768, 1024, 2048"):
        read_blueprint(tmp_path / "m.safetensors")
    save_single_file(tiny_backbone, tmp_path / "m.safetensors")
    assert_same(load_backbone(tmp_path / "m.safetensors", config=str(tiny_folder)), tiny_backbone)


def test_a_single_file_loads_without_naming_a_configuration(tmp_path, tiny_backbone, tiny_folder, monkeypatch):
    """As of SD 1.5, whose configuration and vocabulary come with the package; here the tiny model's in its place."""
    ignore = shutil.ignore_patterns("*.safetensors", "tokenizer")
    shutil.copytree(tiny_folder, tmp_path / "architectures" / "sd15", ignore=ignore)
    for module in (blueprint, backbone):
        monkeypatch.setattr(module, "ARCHITECTURES", tmp_path / "architectures")
    monkeypatch.setattr(blueprint, "BY_WIDTH", {32: "sd15"})
    save_single_file(tiny_backbone, tmp_path / "m.safetensors")
    assert_same(load_backbone(tmp_path / "m.safetensors", local_files_only=True), tiny_backbone)


@pytest.mark.parametrize("name", GROUPS)
def test_real_configurations_without_weights(name):
    folder, (layers, groups) = ARCHITECTURES / name, GROUPS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet")).eval()
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
        text = CLIPTextModel(AutoConfig.from_pretrained(folder / "text_encoder"))
    space = ConditioningSpace.p_plus(unet)
    assert len(cross_attention_layers(unet)) == layers and space.num_layers == groups
    width = unet.config.cross_attention_dim
    assert width == text.config.hidden_size + (1280 if name == "sdxl" else 0) and vae.config.latent_channels == 4
    meta = {"device": "meta"}
    added = {"text_embeds": torch.empty(1, 1280, **meta), "time_ids": torch.empty(1, 6, **meta)}
    with bind(unet, space):
        out = unet(torch.empty(1, 4, 64, 64, **meta), torch.empty(1, **meta),
                   encoder_hidden_states=torch.empty(1, groups * 77, width, **meta),
                   added_cond_kwargs=added if name == "sdxl" else None).sample  # fmt: skip
    assert out.shape == (1, 4, 64, 64)


def test_wrong_pairings_stop_before_weights_are_read():
    """Folders that hold configurations only; 2 seconds each, on a machine that does other things too."""
    for name, words in (("sd15", "width 128.*width 768"), ("sd21", "width 1024"), ("sdxl", "width 2048")):
        start = time.process_time()
        with pytest.raises(UserError, match=f"was trained for mini.*{words}"):
            read_config(bundled_folder(), read_blueprint(ARCHITECTURES / name))
        assert time.process_time() - start < 2
    xl, concept = read_blueprint(ARCHITECTURES / "sdxl"), make_concept(tiny.make_backbone())
    with pytest.raises(UserError, match="16 layer cells.*11 layer cells"):
        concept.check_fits(xl.p_plus(), xl.width)
