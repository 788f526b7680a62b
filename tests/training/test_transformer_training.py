"""Trainings over transformers, end to end on a tiny model on disk per family."""

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import objectives
import pytest
import torch
from diffusers import DiffusionPipeline
from photo_shards import save_tower, write_photos
from PIL import Image
from tiny import make_scheduler
from transformer_pipelines import PIPELINES, paint

import escdiff
from escdiff.backbone.transformer import TransformerBackbone
from escdiff.cli import infer
from escdiff.concept import Concept
from escdiff.methods.xti import XTI
from escdiff.support.config.compose import compose
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError
from escdiff.training.loop import run
from escdiff.training.method.module import MethodModule

PRESETS = {"sd3": "sd35"}  # family -> its file in configs/backbone, where the names differ
TRAINING = ("data.size=64", "data.batch_size=2", "trainer.threads=1", "trainer.log_steps=1", "trainer.sample_steps=0")
NOISY = 1000.0  # a bias to the timesteps with the most noise, so that the model has to ask the concept


@dataclass
class Disk:
    """A family's tiny pipeline in a folder, a picture and a place for results."""

    family: str
    model: Path
    root: Path

    @property
    def chosen(self) -> list[str]:
        return [f"backbone={PRESETS.get(self.family, self.family)}"]

    @property
    def backbone(self) -> list[str]:
        return [*self.chosen, f"backbone.name={self.model}", "backbone.dtype=float32"]

    def config(self, run_name: str, *arguments: str) -> TrainConfig:
        return compose("train", [*self.backbone, *TRAINING, f"run_dir={self.root / run_name}", *arguments])

    def paint(self, *arguments: str) -> np.ndarray:
        given = [*self.backbone, "steps=1", "size=64", "num_images=1", f"out={self.root / 'out'}", *arguments]
        out = infer.run(compose("infer", given))
        return np.asarray(Image.open(out / "picture-000.png"), int)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("picture") / "mug.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(file)
    return file


@pytest.fixture(scope="module", params=list(PIPELINES))
def folder(request, tmp_path_factory) -> tuple[str, Path]:
    model = tmp_path_factory.mktemp(request.param)
    PIPELINES[request.param]().save_pretrained(model)
    return request.param, model


@pytest.fixture
def disk(folder, tmp_path) -> Disk:
    return Disk(*folder, tmp_path)


class Kill(L.Callback):
    """What a lost machine does."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise RuntimeError("killed")


@pytest.mark.slow
def test_trained_killed_resumed_painted_and_unloaded(disk, picture):
    given = (
        "method=xti",
        f"data.references={picture}",
        "trainer.max_steps=4",
        "trainer.save_steps=2",
        "method.init=mug",
    )
    run.train(disk.config("straight", *given))
    with pytest.raises(RuntimeError, match="killed"):
        run.train(disk.config("parts", *given), [Kill()])
    run.train(disk.config("parts", *given))
    files = [disk.root / name / "export" / "concept.safetensors" for name in ("straight", "parts")]
    straight, parts = (Concept.load(file) for file in files)
    assert torch.equal(straight.vectors["concept"], parts.vectors["concept"])
    assert not torch.equal(
        parts.vectors["concept"][:, 0], parts.anchors["concept"].expand(parts.space.num_layers, -1, -1)
    )
    assert (parts.family, parts.words) == (disk.family, {"concept": "mug"})

    with_it = disk.paint(f"concept={files[1]}")
    assert (with_it != disk.paint(f"concept={files[1]}", "strength.shape=1", "seed=1")).any()

    stock = DiffusionPipeline.from_pretrained(disk.model)
    plain = paint(disk.family, stock, "a photo of a mug", max_sequence_length=300)
    louder = parts.scaled(100.0)
    escdiff.load_concept(stock, louder)
    assert not torch.equal(paint(disk.family, stock, "a photo of a <concept>", max_sequence_length=300), plain)
    escdiff.unload_concept(stock)
    assert torch.equal(paint(disk.family, stock, "a photo of a mug", max_sequence_length=300), plain)


@pytest.mark.slow
def test_an_encoder_is_trained_reads_pictures_and_is_tuned(disk, picture, tmp_path):
    save_tower(tmp_path / "vision")
    (tmp_path / "photos").mkdir()
    photos = write_photos(tmp_path / "photos")
    reader = ("encoder.shape_depths=[1,3]", "encoder.appearance_depths=[0,2]", "encoder.features=16", "encoder.rank=2",
              "encoder.tokens={shape:1,appearance:2}", f"encoder.vision={tmp_path / 'vision'}")  # fmt: skip
    given = ("data.latents=null", "data.val_fraction=0.3", "loss.draws=2", "optim.ema=0", "trainer.max_steps=2")
    config = disk.config("encoder", *reader, *given, "data.num_workers=0")
    config.data.root, config.trainer.sample_steps = str(photos), 2
    run.train(config)
    assert (tmp_path / "encoder" / "samples" / "step-000000002.png").is_file()

    encoder = tmp_path / "encoder" / "export"
    painted = [disk.paint(f"encoder={encoder}", f"shape={picture}", *more) for more in ((), ("strength.shape=9",))]
    assert (painted[0] != painted[1]).any()
    with pytest.raises(UserError, match="trained for"):
        infer.run(compose("infer", [f"encoder={encoder}", f"shape={picture}", f"out={tmp_path}"]))

    tuned = disk.config("tuned", "method=escdiff_tuned", f"method.encoder={encoder}", f"data.references={picture}",
                        "trainer.max_steps=2")  # fmt: skip
    run.train(tuned)
    concept = Concept.load(tmp_path / "tuned" / "export" / "concept.safetensors")
    assert concept.attributes == ("shape", "appearance") and concept.words["appearance"] == "colored colored"
    assert disk.paint(f"concept={tmp_path / 'tuned' / 'export' / 'concept.safetensors'}").any()


@pytest.mark.slow
def test_one_batch_is_learned(folder):
    """A tenth of the first loss, on a picture that the frozen model paints for a concept that has to be found."""
    backbone = TransformerBackbone(PIPELINES[folder[0]](), "tiny")
    backbone.prompts.given["max_sequence_length"] = 24
    if folder[0] == "pixart":  # predicts the picture itself, as in test_overfit
        backbone.scheduler = make_scheduler("sample")
    teacher, student = (
        MethodModule(XTI(backbone, "mug", keep_norm=False), 0.05, max_steps=1, high_noise_bias=NOISY) for _ in range(2)
    )
    with torch.no_grad():
        teacher.method.table += torch.randn(teacher.method.table.shape, generator=torch.Generator().manual_seed(1))
    latents = torch.zeros(2, backbone.moments(torch.zeros(1, 3, 64, 64)).shape[1] // 2, 8, 8)
    teacher.on_fit_start()
    for _ in range(4):  # at so much noise the model's answer hardly depends on the picture
        with torch.no_grad():
            output, target = answer(teacher, latents)
        sign = 1 if folder[0] == "pixart" else -1  # of the picture in the target
        latents = latents + sign * (output - target)
    floor = error(teacher, latents).item()
    teacher.on_fit_end()
    student.on_fit_start()
    optimizer, losses = torch.optim.Adam(student.method.parameters(), 0.05), []
    for _ in range(80):
        loss = error(student, latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    student.on_fit_end()
    assert floor < 0.01 * losses[0] and losses[-1] < 0.1 * losses[0]


def answer(module: MethodModule, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)  # the same noise at every step
    backbone = module.backbone
    moments = objectives.certain(backbone.family.latents.restore(backbone.vae, latents))
    output, target, _, _ = module.denoise({"latent": moments, "prompt": ["a <concept>"] * len(latents)}, NOISY)
    return output, target


def error(module: MethodModule, latents: torch.Tensor) -> torch.Tensor:
    output, target = answer(module, latents)
    return (output - target).square().mean()
