"""Methods with an encoder: learned from data, then one pass; IP-Adapter is diffusers' own."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from method_step import step_of
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

import escdiff
from escdiff.backbone.adapters.attached import applied
from escdiff.concept import Concept
from escdiff.data.pictures import to_pil
from escdiff.methods.e4t import E4T
from escdiff.methods.elite import ELITE
from escdiff.methods.encoder_method import _replace, foreground, pooled
from escdiff.methods.fastcomposer import FastComposer
from escdiff.methods.instantbooth import InstantBooth
from escdiff.methods.ip_adapter import IPAdapter
from escdiff.methods.portraitbooth import PortraitBooth
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.data.swap_data import SwapData
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import References


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_still_life(root / "world", 96, StillLifeOptions(seed=1, size=64))
    return root / "world"


@pytest.fixture
def make(backbone, towers):
    """Name -> a method on a fresh backbone."""
    torch.manual_seed(0)
    kinds = {
        "ip_adapter": lambda: IPAdapter(backbone, str(towers[1]), drop=0.0),
        "elite": lambda: ELITE(backbone, str(towers[0])),
        "e4t": lambda: E4T(backbone, str(towers[0])),
        "instantbooth": lambda: InstantBooth(backbone, str(towers[0])),
        "fastcomposer": lambda: FastComposer(backbone, str(towers[0])),
        "portraitbooth": lambda: PortraitBooth(backbone, 16),
    }
    return lambda name: kinds[name]()


def test_ip_adapter_is_diffusers_own_pipeline(make, fresh, tiny_folder, towers, references, tmp_path):
    method = make("ip_adapter")
    for parameter in method.kept:
        torch.nn.init.normal_(parameter, std=0.3)
    picture = References.read(references / "a.png", 128).pixels
    method.start(picture)
    method.export(tmp_path)
    theirs = StableDiffusionPipeline.from_pretrained(
        tiny_folder, image_encoder=CLIPVisionModelWithProjection.from_pretrained(towers[1]),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32), safety_checker=None,
    )  # fmt: skip
    theirs.load_ip_adapter(str(tmp_path / "adapter"), "", "ip_adapter.safetensors", image_encoder_folder=None)
    theirs.set_ip_adapter_scale(0.7)
    theirs.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "guidance_scale": 4.0}
    seed = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    expected = theirs("a photo of a object", ip_adapter_image=to_pil(picture[0]), generator=seed(), **arguments).images[
        0
    ]
    ours, concept = fresh(), Concept.load(tmp_path / "concept.safetensors")
    with applied(ours, [concept], [tmp_path]):
        alone, several = (
            generate(ours, ["a photo of a <concept>"] * n, concept, steps=2, guidance=4.0, seeds=[3, 4][:n])
            for n in (1, 2)
        )
    assert np.array_equal(np.asarray(alone[0]), np.asarray(expected))
    difference = np.asarray(several[0], int) - np.asarray(expected, int)  # a batch rounds otherwise
    assert np.abs(difference).max() <= 1
    assert concept.notes["shared_weights"] == "yes"
    plain = generate(ours, ["a photo of a object"], steps=2, guidance=4.0, seeds=[3])[0]
    again = generate(fresh(), ["a photo of a object"], steps=2, guidance=4.0, seeds=[3])[0]
    assert np.array_equal(np.asarray(plain), np.asarray(again))  # gone without a trace
    assert not np.array_equal(np.asarray(plain), np.asarray(expected))


@pytest.mark.parametrize("name", ["ip_adapter", "elite", "e4t"])
def test_concepts_with_weights_paint_in_stock_pipelines_and_leave_no_trace(make, fresh, references, tmp_path, name):
    """Their pictures are those of our own way to paint; a prompt without the picture is stock beside one with it."""
    method = make(name)
    for parameter in method.kept:
        torch.nn.init.normal_(parameter, std=0.3)
    method.start(References.read(references / "a.png", 128).pixels)
    method.export(tmp_path)
    concept, prompt = Concept.load(tmp_path / "concept.safetensors"), "a photo of a <concept>"
    ours = fresh()
    with applied(ours, [concept], [tmp_path]):
        expected = generate(ours, [prompt], concept, steps=2, guidance=4.0, seeds=[3])[0]
    backbone = fresh()
    pipeline, before = backbone.pipeline(), dict(backbone.unet.state_dict())
    processors = dict(backbone.unet.attn_processors)
    pipeline.set_progress_bar_config(disable=True)

    def paint(*prompts):
        seeds = [torch.Generator().manual_seed(3) for _ in prompts]
        arguments = {"num_inference_steps": 2, "guidance_scale": 4.0, "generator": seeds}
        return [np.asarray(picture, int) for picture in pipeline(list(prompts), **arguments).images]

    stock = paint("a mug")[0]
    with pytest.raises(UserError, match="folder="):
        escdiff.load_concept(pipeline, concept)
    escdiff.load_concept(pipeline, tmp_path / "concept.safetensors")
    assert np.array_equal(paint(prompt)[0], np.asarray(expected))
    both = paint(prompt, "a mug")  # a batch rounds otherwise
    assert np.abs(both[0] - np.asarray(expected)).max() <= 1
    if name == "ip_adapter":
        assert np.array_equal(paint("a mug")[0], stock) and np.abs(both[1] - stock).max() <= 1
    escdiff.unload_concept(pipeline)
    after = backbone.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert backbone.unet.attn_processors == processors and np.array_equal(paint("a mug")[0], stock)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.unet.modules())


@pytest.mark.parametrize("name", ["ip_adapter", "elite", "e4t"])
def test_a_method_takes_out_of_the_backbone_what_it_put_there(make, backbone, name):
    before, processors = list(backbone.unet.state_dict()), dict(backbone.unet.attn_processors)
    method = make(name)
    assert list(backbone.unet.state_dict()) != before
    method.release()
    assert list(backbone.unet.state_dict()) == before and backbone.unet.attn_processors == processors


def test_ip_adapter_drops_the_picture_the_text_or_both_equally_often(backbone, towers, monkeypatch):
    method = IPAdapter(backbone, str(towers[1]), drop=0.05)
    monkeypatch.setattr(method, "embed", lambda pictures: torch.ones(len(pictures), 3))
    count = 20_000
    texts = method.texts(["a <concept>"] * count)
    no_text = torch.tensor([text == "" for text in texts])
    embeds = method.added({"pixels": torch.empty(count), "texts": texts})["added_cond_kwargs"]["image_embeds"][0]
    no_picture = embeds[:, 0, 0] == 0
    for dropped in (no_text & ~no_picture, no_picture & ~no_text, no_text & no_picture):
        assert abs(dropped.float().mean() - 0.05) < 0.008  # five standard deviations


@pytest.mark.parametrize("name", ["ip_adapter", "elite", "e4t"])
def test_gradients_reach_all_that_is_learned(make, backbone, references, name):
    method = make(name)
    step_of(method, references)
    own = {id(p) for p in method.parameters()}
    missing = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    for part in (backbone.unet, backbone.text_encoder, backbone.vae):
        assert all(p.grad is None for p in part.parameters() if id(p) not in own)


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"), [pytest.param("ip_adapter", 0, marks=SLOW), pytest.param("elite", 0, marks=SLOW), ("e4t", 2)]
)
def test_learn_then_customize_then_paint(fit, towers, world, backbone, references, name, steps):
    tower = [f"method.image_encoder={towers[1]}"] if name == "ip_adapter" else [f"method.vision={towers[0]}"]
    tower += ["method.tuning_steps=2"] if name == "e4t" else []
    learned = fit(name, *tower, f"data.root={world}", "data.batch_size=4", source=None, folder="learned") / "export"
    assert not (learned / "concept.safetensors").exists()
    source = references / "a.png"
    made = fit(name, *tower, f"init={learned}", steps=9, source=source, folder="made") / "export"
    concept = Concept.load(made / "concept.safetensors")
    assert concept.notes["steps"] == str(steps) and (concept.notes["parameters"] == "0") == (steps == 0)
    with applied(backbone, [concept], [made]):
        picture = generate(backbone, ["a <concept>"], concept, steps=1)[0]
    other = fit(name, *tower, f"init={learned}", source=references / "b.png", folder="other") / "export"
    second = Concept.load(other / "concept.safetensors")
    with applied(backbone, [second], [other]):
        assert not np.array_equal(
            np.asarray(generate(backbone, ["a <concept>"], second, steps=1)[0]), np.asarray(picture)
        )
    with pytest.raises(UserError, match="init="):
        fit(name, *tower, source=source, folder="none")
    with pytest.raises(UserError, match="was made for" if name != "elite" else "expected"):
        others = "elite" if name != "elite" else "e4t"
        fit(others, f"method.vision={towers[0]}", f"init={learned}", source=source, folder="strange")


def test_the_mask_leaves_the_background_out(make):
    method = make("elite")
    torch.manual_seed(0)
    pixels, mask = torch.rand(1, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1  # the middle 2 x 2 of 4 x 4 patches
    tokens = torch.randn(2, 16, 5)
    inside = tokens[:, [5, 6, 9, 10]]
    kept = foreground(tokens, mask.expand(2, -1, -1, -1))
    assert kept.shape == tokens.shape and torch.equal(kept[:, :4], inside) and torch.equal(kept[:, 4:8], inside)
    assert torch.allclose(pooled(tokens, mask.expand(2, -1, -1, -1)), inside.mean(1), atol=2e-2)
    assert torch.equal(foreground(tokens, torch.zeros(2, 1, 32, 32))[0], tokens[0, :1].expand(16, -1))  # never empty
    method.start(pixels, mask)
    masked = method.patches.clone()
    method.start(pixels)
    assert not torch.equal(masked, method.patches)


def test_masks_are_read_from_beside_the_pictures(references, tmp_path):
    from shutil import copy

    from PIL import Image

    copy(references / "a.png", tmp_path / "a.png")
    assert References.read(tmp_path, 64).masks is None
    Image.new("L", (40, 40), 255).save(tmp_path / "a.mask.png")
    found = References.read(tmp_path, 64)
    assert found.names == ["a.png"] and found.masks.shape == (1, 1, 64, 64) and found.masks.min() == 1


def test_the_data_sets_prompts_get_one_placeholder():
    texts = {
        "a photo of a <shape> made of <appearance> on a sky background": "a photo of a <concept> on a sky background",
        "one <appearance> <shape>": "one <concept>", "a <appearance> mug": "a <concept> mug", "a mug": "a mug",
    }  # fmt: skip
    assert [_replace(text, "<concept>") for text in texts] == list(texts.values())


def test_e4t_tunes_the_word_and_the_offsets_only(make, backbone, references):
    method = make("e4t")
    method.start(References.read(references / "a.png", 128).pixels)
    step_of(method, references)
    graded = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert graded == {"tuned", "kept"}
    assert method.changed() == method.tuned.numel() + sum(p.numel() for p in method.kept)


@pytest.fixture
def swaps(world):
    """Still Life with latents as if stored, of which a half is held out."""
    data = SwapData(world, batch_size=2, val_fraction=0.5)
    data.setup()
    data.train_set.latents = data.val_set.latents = torch.randn(96, 16, 8, 8)
    return data


ENCODERS = ["ip_adapter", "elite", "e4t", "instantbooth", "fastcomposer", "portraitbooth"]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_methods_validate_and_step_on_still_life_with_and_without_latents(make, swaps, name):
    method = make(name)
    module, batch = MethodModule(method, 1e-3, 10), next(iter(swaps.val_dataloader()))

    def error():
        torch.manual_seed(0)
        with torch.no_grad():
            return module.validation_step(dict(batch), 0)["error"]

    module.on_fit_start()
    before = error()
    assert before.shape == (2,) and before.isfinite().all()
    if name == "e4t":
        torch.nn.init.normal_(method.encoder[-1].weight)
        assert not torch.equal(error(), before)  # it is the encoder's word that is validated
    batch = {key: value for key, value in batch.items() if key != "latent"}
    module.training_step(batch, 0)["loss"].backward()
    module.on_fit_end()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (E4T, {"depths": [1, 4]}),
        (ELITE, {"depths": [3, 9]}),
        (FastComposer, {"depths": [-1]}),
        (InstantBooth, {"depth": 4}),
    ],
)
def test_depths_that_the_tower_lacks_are_refused_at_once(backbone, towers, kind, settings):
    before = list(backbone.unet.state_dict())
    with pytest.raises(UserError, match=r"method.depths? names depth (4|9|-1) of the vision tower .*; expected 0 to 3"):
        kind(backbone, str(towers[0]), **settings)
    assert list(backbone.unet.state_dict()) == before
