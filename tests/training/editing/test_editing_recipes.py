"""InstructPix2Pix and AnyDoor by `python train.py`, on a tiny backbone: rendered, trained, stopped, stored, loaded."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone
from escdiff.cli import train
from escdiff.data.index import Index
from escdiff.mini.data.placings import Placings, build_placings, draw_placing, show
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.recipes import anydoor
from escdiff.pipelines.instruct import load_instruct
from escdiff.pipelines.placer import Placer
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError
from escdiff.training.editing import setup as instruct_setup
from escdiff.training.editing.instruct import InstructModule, dropped
from escdiff.training.editing.pairs import read_pairs
from escdiff.training.encoder import frozen


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """16 pairs, and a tower."""
    root = tmp_path_factory.mktemp("edits")
    make_still_life(root / "world", 32, StillLifeOptions(seed=1, size=64, edits=1.0))
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained(root / "tower")
    return root


def settings(tiny_folder, world, name, *arguments):
    return [
        f"experiment=mini/{name}", f"backbone.name={tiny_folder}", f"data.root={world / 'world'}", "data.size=64",
        "data.batch_size=4", "data.num_samples=8", "trainer.threads=1", "trainer.log_steps=1", "trainer.max_steps=2",
        f"encoder.vision={world / 'tower'}", *arguments,
    ]  # fmt: skip


def run(*given):
    train._main(settings(*given))


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["train/loss_mean"] for line in lines if "train/loss_mean" in json.loads(line)]


def test_pairs_are_before_and_after(world):
    pairs = read_pairs(world / "world", Index.load(world / "world"))
    assert [(pair.before, pair.after) for pair in pairs] == [(2 * i, 2 * i + 1) for i in range(16)]
    assert len({pair.instruction for pair in pairs}) > 8 and all(pair.instruction for pair in pairs)


@pytest.mark.slow
def test_instruct_pix2pix_from_the_door(tiny_folder, world, tmp_path):
    run(tiny_folder, world, "instruct_pix2pix", f"run_dir={tmp_path}")
    pipeline = load_instruct(tmp_path / "export")
    assert len(losses(tmp_path)) == 2 and pipeline.unet.config.in_channels == 16
    assert pipeline.unet.conv_in.weight[:, 8:].abs().max() > 0  # it has learned to look
    given = settings(
        tiny_folder, world, "instruct_pix2pix", f"run_dir={tmp_path / 'on'}", f"init={tmp_path / 'export'}"
    )
    goes_on = instruct_setup.build(compose("train", given)).module
    torch.testing.assert_close(dict(goes_on.unet.state_dict()), dict(pipeline.unet.state_dict()))
    with pytest.raises(UserError, match="init=.* whose UNet2DConditionModel is not this recipe's .*conv_in"):
        run(tiny_folder, world, "instruct_pix2pix", f"run_dir={tmp_path / 'on'}", f"init={tiny_folder}")


@pytest.mark.slow
def test_anydoor_from_the_door(tiny_folder, world, tmp_path):
    run(tiny_folder, world, "anydoor", f"run_dir={tmp_path}")
    unet = load_backbone(str(tiny_folder)).unet
    with pytest.raises(UserError, match=r"the vision tower 'tower', .* encoder.vision=DIR"):
        Placer.from_pretrained(tmp_path / "export", unet)
    placer = Placer.from_pretrained(tmp_path / "export", unet, str(world / "tower"))
    assert len(losses(tmp_path)) == 2
    assert placer.controlnet.controlnet_mid_block.weight.abs().max() > 0 == placer.controlnet.conv_in.weight.abs().max()
    moved = {name for name, p in placer.unet.named_parameters() if not torch.equal(p, unet.get_parameter(name))}
    assert moved and all(name.startswith("up_blocks") for name in moved)
    given = settings(tiny_folder, world, "anydoor", f"run_dir={tmp_path / 'on'}", f"init={tmp_path / 'export'}")
    goes_on = anydoor.build(compose("train", given)).module.placer
    torch.testing.assert_close(dict(goes_on.state_dict()), dict(placer.state_dict()))
    assert {name for name, p in goes_on.named_parameters() if not p.requires_grad} == {
        "controlnet.conv_in.weight", "controlnet.conv_in.bias"
    }  # fmt: skip


@pytest.mark.slow
def test_other_data_and_backbones_are_refused(tiny_folder, world, tmp_path):
    make_still_life(tmp_path / "plain", 16, StillLifeOptions(seed=1, size=64))
    with pytest.raises(UserError, match="holds no pairs"):
        run(tiny_folder, world, "instruct_pix2pix", f"run_dir={tmp_path / 'a'}", f"data.root={tmp_path / 'plain'}")
    with pytest.raises(UserError, match="read from a folder"):
        run(tiny_folder, world, "instruct_pix2pix", f"run_dir={tmp_path / 'b'}", "data.shards=s3://bucket/pairs")


def test_drops_are_of_the_text_the_picture_and_both():
    torch.manual_seed(0)
    texts, shown = dropped(["make it red"] * 4000, torch.ones(4000, 1, 1, 1))
    kinds = [(bool(text), bool(value)) for text, value in zip(texts, shown.flatten(), strict=True)]
    shares = {kind: kinds.count(kind) / 4000 for kind in set(kinds)}
    assert shares.keys() == {(True, True), (False, True), (True, False), (False, False)}
    assert all(abs(shares[kind] - 0.05) < 0.012 for kind in shares if kind != (True, True))


def test_the_loss_is_the_backbones_own_as_long_as_the_new_channels_are_zero(tiny_backbone):
    torch.manual_seed(0)
    batch = {"before": torch.randn(2, 16, 16, 16), "after": torch.randn(2, 16, 16, 16), "instruction": ["a", "b"]}
    module = InstructModule(tiny_backbone, 1e-3, 10)
    torch.manual_seed(1)
    found = module.training_step(batch, 0)["error"]
    torch.manual_seed(1)
    latents = tiny_backbone.sample_latents(batch["after"])
    timesteps = (1000 * torch.rand(2, 1)[:, 0]).long()
    noise = torch.randn_like(latents)
    texts, _ = dropped(batch["instruction"], torch.zeros(2, 1, 1, 1))
    states = tiny_backbone.prompts.encode_plain(texts)[:, 0, 0]
    output = tiny_backbone.unet(tiny_backbone.add_noise(latents, noise, timesteps), timesteps, states).sample
    torch.testing.assert_close(found, (output - noise).square().mean((1, 2, 3)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_placings_differ_by_the_object_and_its_shadow_alone(tmp_path):
    placings = [draw_placing(3, number) for number in range(4)]
    shown = show(placings, 64)
    for i, placing in enumerate(placings):
        thing = placing.after.things[placing.number]
        assert (placing.reference.shape, placing.reference.material) == (thing.shape, thing.material)
        changed = (shown["before"][i] != shown["after"][i]).any(-1)
        left, top, right, bottom = (shown["box"][i] * 64).round().astype(int)
        assert changed[top:bottom, left:right].mean() > 0.2 and shown["mask"][i].any()
    build_placings(tmp_path, 1, 3, 32)
    data = Placings(tmp_path)
    batch, again = (data.__getitems__([(0, 0), (0, 63)]) for _ in range(2))
    assert len(data) == 64 and batch["box"] == again["box"] and batch["after"].shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", ["instruct_pix2pix", "anydoor"])
def test_transformers_are_refused_before_their_weights_are_read(tiny_folder, tmp_path, monkeypatch, name):
    family = SimpleNamespace(name="flux", reading=object())
    plan = SimpleNamespace(is_xl=False, family=family, name="some/flux")
    monkeypatch.setattr(frozen, "blueprint_of", lambda settings: plan)
    monkeypatch.setattr(frozen, "load_backbone", lambda *_, **options: pytest.fail("read"))
    with pytest.raises(
        UserError, match="some/flux is of the family 'flux'; .* learns from Stable Diffusion 1.x or 2.x"
    ):
        run(tiny_folder, tmp_path, name, f"run_dir={tmp_path}")
