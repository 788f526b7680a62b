"""The encoder trained on photographs: targets at the U-Net's size, references at the tower's, swaps in the grid."""

import json
import logging

import pytest
import torch
from photo_shards import save_tower, write_photos
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from escdiff.backbone import load_backbone
from escdiff.data.latent_cache import encode_dataset, vae_key
from escdiff.data.pictures import to_pil
from escdiff.evaluation.metrics.features import ClassToken
from escdiff.evaluation.metrics.while_training import make_scores
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.data import DataConfig
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.support.errors import UserError
from escdiff.support.logging import quiet_libraries
from escdiff.training.encoder.datasets import make_data
from escdiff.training.encoder.frozen import picture_size
from escdiff.training.encoder.module import EncoderModule, joined
from escdiff.training.encoder.preview import CELL
from escdiff.training.loop import run
from escdiff.training.loop.monitoring import summary


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def config(photos, tmp_path, tiny_folder):
    torch.manual_seed(0)
    save_tower(tmp_path / "vision")
    encoder = EncoderConfig(vision=str(tmp_path / "vision"), features=32, tokens={"shape": 1, "appearance": 2},
                            shape_depths=[1, 3], appearance_depths=[0, 2])  # fmt: skip
    trainer = TrainerConfig(
        max_steps=3, accelerator="cpu", devices=1, log_steps=1, save_steps=3, sample_steps=3, val_steps=0
    )
    return TrainConfig(
        recipe="encoder", seed=5, run_dir=str(tmp_path / "run"), backbone=BackboneConfig(name=str(tiny_folder)),
        encoder=encoder, data=DataConfig(root=str(photos), batch_size=2, size=64, val_fraction=0.3),
        optim=OptimConfig(lr=1e-3, warmup=2, ema=0.0), loss=LossConfig(draws=1, pairs_every=1), trainer=trainer,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["squares", "buckets", "latents"])
def test_photographs_train_and_their_grid_shows_swaps(config, photos, tmp_path, kind, tiny_folder, caplog, recwarn):
    quiet_libraries()
    caplog.set_level(logging.INFO, summary.__name__)
    config.data.buckets = kind == "buckets"
    if kind == "latents":
        backbone = load_backbone(tiny_folder)
        encode_dataset(photos, backbone.moments, vae_key(backbone.vae, 64), size=64)
    run.train(config)
    with Image.open(tmp_path / "run" / "samples" / "step-000000003.png") as grid:
        assert 3 * CELL < grid.height < 4 * CELL and grid.width > 2 * CELL  # both references and what is painted
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    assert not [w for w in recwarn if "treespec" in str(w.message) or "__len__" in str(w.message)]
    said = dict(record.getMessage().split(maxsplit=1) for record in caplog.records if record.name == summary.__name__)
    assert said["latents"].startswith("from the cache" if kind == "latents" else "encoded live")
    assert said["workers"].startswith("0, so steps wait")  # "auto" is none where the CPU trains


def test_the_preview_shows_whole_held_out_photographs(config, tiny_folder):
    config.data.latents = None
    backbone = load_backbone(tiny_folder)
    data = make_data(config.data, config.seed, backbone, reference_size=32)
    batch = data.preview()
    assert batch["shape_ref"].shape[1:] == (3, 32, 32) and "pixels" not in batch
    assert all(" in " in key for key in batch["key"])
    held = {raw["__key__"] for raw in data.held}
    trained = {key for batch in data.train_dataloader() for key in batch["key"]}
    assert held and held.isdisjoint(trained)
    config.data.val_fraction = 0.0
    assert not any(" in " in key for key in make_data(config.data, config.seed, backbone).preview()["key"])


def test_pictures_of_two_sizes_are_joined_at_the_references():
    square, wide = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 32, 64)
    wide[..., :16], wide[..., 48:] = 5, 5  # what the square in the middle leaves out
    both = joined([square, wide], square.shape[-2:])
    assert both.shape == (4, 1, 8, 8) and torch.allclose(both[2:], torch.ones(1))
    assert torch.equal(joined([square, square + 1], square.shape[-2:]), torch.cat([square, square + 1]))


def test_sizes_that_the_vae_cannot_halve_are_refused(tiny_folder):
    backbone = load_backbone(tiny_folder)
    assert picture_size(64, backbone) == 64 and picture_size(None, backbone) == 128
    with pytest.raises(UserError, match="data.size=63 given; the VAE needs a multiple of"):
        picture_size(63, backbone)


@pytest.mark.slow
def test_scores_are_logged_beside_the_validation_loss(config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTModel(ViTConfig(**size, image_size=32, patch_size=8), add_pooling_layer=False).save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dino")
    paint, shown = EncoderModule.paint_preview, []

    def paint_preview(module):
        shown.append((module.preview["shape_ref"], paint(module)))
        return shown[-1][1]

    monkeypatch.setattr(EncoderModule, "paint_preview", paint_preview)
    config.trainer.val_steps, config.trainer.sample_steps = 1, 0
    run.train(config, make_scores({"clip": "mini", "dino": str(tmp_path / "dino")}, 1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scored = [line for line in lines if "val/scores_share" in line]
    assert [line["step"] for line in scored] == [0, 2]  # the first and the last: painting takes longer than such steps
    assert [line["step"] for line in lines if "val/loss" in line] == [0, 1, 2]
    kinds = ("clip_shape", "clip_appearance", "clip_text", "dino_shape", "dino_appearance")
    assert all(-1 <= line[f"val/{kind}"] <= 1 for line in scored for kind in kinds)
    network, (references, painted) = ClassToken(tmp_path / "dino"), shown[-1]
    pairs = zip(network.pictures(painted), network.pictures([to_pil(pixels) for pixels in references]), strict=True)
    expected = [(a @ b / (a.norm() * b.norm())).item() for a, b in pairs]
    assert scored[-1]["val/dino_shape"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)

    def weights(folder):
        return torch.load(next((folder / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]

    config.run_dir = str(tmp_path / "without")
    run.train(config)
    without = weights(tmp_path / "without")
    assert all(torch.equal(value, without[name]) for name, value in weights(tmp_path / "run").items())


def test_networks_that_are_not_there_are_refused_before_the_training(tmp_path):
    with pytest.raises(UserError, match="downloads none"):
        make_scores({"clip": "openai/clip-vit-base-patch32", "dino": None}, 1)
    with pytest.raises(UserError, match="cannot be read"):
        make_scores({"clip": None, "dino": str(tmp_path)}, 1)
    save_tower(tmp_path)
    with pytest.raises(UserError, match="type clip_vision_model; expected a whole CLIP"):
        make_scores({"clip": str(tmp_path)}, 1)
    assert make_scores({"clip": None, "dino": None}, 1) == []
