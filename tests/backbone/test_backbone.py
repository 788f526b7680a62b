"""The backbone loads from every source, does what the stock pipelines do, and refuses the rest."""

import copy

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from ldm_layout import save_single_file

from escdiff import backbone as module
from escdiff.backbone import identify as blueprint
from escdiff.backbone import load_backbone
from escdiff.support.errors import UserError


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def assert_same(a, b):
    assert all(same_weights(getattr(a, part), getattr(b, part)) for part in ("unet", "vae", "text_encoder"))
    assert a.text_hash == b.text_hash and a.p_plus() == b.p_plus()
    prompts = ["a photo of a mug", "two mugs!"]
    assert torch.equal(a.prompts.encode_plain(prompts), b.prompts.encode_plain(prompts))


def test_loads_a_diffusers_folder(tiny_backbone, tiny_folder):
    loaded = load_backbone(tiny_folder)
    assert_same(loaded, tiny_backbone)
    assert loaded.name == str(tiny_folder) and loaded.width == 32
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    for part in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
    assert not isinstance(loaded, torch.nn.Module)


def test_loads_mini_from_the_package(tiny_backbone, tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(blueprint, "mini_folder", lambda: tiny_folder)
    assert_same(load_backbone(), tiny_backbone)
    assert load_backbone("mini").name == "mini"
    monkeypatch.setattr(blueprint, "mini_folder", lambda: tmp_path / "absent")
    with pytest.raises(UserError, match="train.py experiment=mini/clip"):
        load_backbone("mini")


def test_mini_folder_is_inside_the_package():
    assert module.mini_folder().parts[-3:] == ("escdiff", "assets", "mini")


def test_loads_a_single_safetensors_file(tiny_backbone, tiny_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    save_single_file(tiny_backbone, path)
    assert_same(load_backbone(path, config=str(tiny_folder)), tiny_backbone)


def test_a_cast_keeps_the_text_hash(tiny_backbone, tiny_folder):
    half = load_backbone(tiny_folder, dtype=torch.bfloat16)
    assert half.dtype == half.vae.dtype == torch.bfloat16
    assert half.text_hash == tiny_backbone.text_hash
    other = tiny.make_backbone(text_encoder=tiny.make_text_encoder(seed=1))
    assert other.text_hash != tiny_backbone.text_hash


def test_half_precision_files_share_the_hash(tiny_backbone, tmp_path):
    tiny.copied(tiny_backbone).pipeline().to(dtype=torch.float16).save_pretrained(tmp_path)
    assert load_backbone(tmp_path).text_hash == tiny_backbone.text_hash


def test_latents_are_scaled_as_the_stock_pipeline_does(tiny_backbone):
    pixels = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments = tiny_backbone.moments(pixels)
    assert moments.shape == (2, 16, 16, 16) and not moments.requires_grad
    latents = tiny_backbone.sample_latents(moments, torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = tiny_backbone.vae.encode(pixels).latent_dist
        stock = posterior.sample(torch.Generator().manual_seed(1)) * tiny_backbone.vae.config.scaling_factor
        decoded = tiny_backbone.decode(latents)
    assert torch.equal(latents, stock)
    pipeline = tiny_backbone.pipeline()
    with torch.no_grad():
        image = tiny_backbone.vae.decode(latents / tiny_backbone.vae.config.scaling_factor).sample
    image = pipeline.image_processor.postprocess(image, output_type="pt")
    torch.testing.assert_close(decoded / 2 + 0.5, image)
    assert decoded.shape == pixels.shape and decoded.abs().max() <= 1


def test_a_shift_factor_is_undone_in_decoding(tiny_backbone):
    shifted = tiny.copied(tiny_backbone)
    shifted.vae.register_to_config(shift_factor=0.3)
    moments = tiny_backbone.moments(torch.zeros(1, 3, 128, 128))
    ours, plain = (b.sample_latents(moments, torch.Generator().manual_seed(1)) for b in (shifted, tiny_backbone))
    torch.testing.assert_close(ours, plain - 0.3 * 0.5)
    still = torch.cat([moments.chunk(2, 1)[0], torch.full_like(moments.chunk(2, 1)[1], -30.0)], 1)
    torch.testing.assert_close(shifted.mean_latents(moments), shifted.sample_latents(still), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(shifted.decode(ours), tiny_backbone.decode(plain))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets(tiny_backbone, kind):
    parts = {part: getattr(tiny_backbone, part) for part in ("unet", "vae", "text_encoder", "tokenizer")}
    backbone = tiny.make_backbone(**parts, scheduler=tiny.make_scheduler(kind))
    x, noise = torch.randn(3, 8, 16, 16), torch.randn(3, 8, 16, 16)
    timesteps = torch.tensor([0, 500, 999])
    alpha = backbone.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    torch.testing.assert_close(backbone.add_noise(x, noise, timesteps), alpha.sqrt() * x + (1 - alpha).sqrt() * noise)
    expected = {"epsilon": noise, "sample": x, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x}
    torch.testing.assert_close(backbone.target(x, noise, timesteps), expected[kind])
    noisy = backbone.add_noise(x, noise, timesteps)
    torch.testing.assert_close(backbone.clean(expected[kind], noisy, timesteps), x, atol=1e-3, rtol=1e-3)


def test_training_noise_does_not_depend_on_the_sampler(tiny_backbone):
    from diffusers import EulerDiscreteScheduler

    euler = copy.copy(tiny_backbone)
    euler.__dict__.pop("noise", None)
    euler.scheduler = EulerDiscreteScheduler.from_config(tiny_backbone.scheduler.config)
    args = torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16), torch.tensor([10, 900])
    assert torch.equal(euler.add_noise(*args), tiny_backbone.add_noise(*args))


def test_predict_is_the_unet(tiny_backbone):
    noisy, states = torch.randn(2, 8, 16, 16), torch.randn(2, 77, 32)
    timesteps = torch.tensor([3, 900])
    expected = tiny_backbone.unet(noisy, timesteps, encoder_hidden_states=states).sample
    assert torch.equal(tiny_backbone.predict(noisy, timesteps, states), expected)


def test_the_pipeline_is_stock_over_the_same_modules(tiny_backbone):
    pipeline = tiny_backbone.pipeline()
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.unet is tiny_backbone.unet and pipeline.safety_checker is None
    pipeline.scheduler.set_timesteps(3)
    assert tiny_backbone.scheduler.num_inference_steps is None  # its state is its own


@pytest.mark.parametrize("size", [(1, 3, 100, 128), (1, 4, 128, 128), (3, 128, 128)])
def test_bad_pixels_are_refused(tiny_backbone, size):
    with pytest.raises(UserError, match="multiples of 8"):
        tiny_backbone.moments(torch.zeros(size))


def test_unloadable_names_are_refused(tmp_path):
    for name in ("./nowhere", "absent.safetensors", str(tmp_path / "no")):
        with pytest.raises(UserError, match="there is no backbone"):
            load_backbone(name)
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tmp_path)  # an empty folder
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone("nobody/no-such-model", local_files_only=True)
    for content in (b"not safetensors", b""):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="could not be loaded"):
            load_backbone(tmp_path / "model.safetensors", local_files_only=True)


def test_pickled_weights_need_trust(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="is a pickle"):
        load_backbone(tmp_path / "model.ckpt")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match="could not be loaded"):
        load_backbone(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(tiny_backbone):
    with pytest.raises(UserError, match="attends to width 64, its text encoder has 32"):
        tiny.make_backbone(unet=tiny.make_unet(width=64), vae=tiny_backbone.vae)
    inpainting = copy.deepcopy(tiny_backbone.unet)
    inpainting.register_to_config(in_channels=17)
    with pytest.raises(UserError, match="reads 17 channels, its VAE has 8"):
        tiny.make_backbone(unet=inpainting, vae=tiny_backbone.vae)
    inpainting.register_to_config(addition_embed_type="text_time")
    with pytest.raises(UserError, match="SDXL.*text encoders: 1"):
        tiny.make_backbone(unet=inpainting, vae=tiny_backbone.vae)
