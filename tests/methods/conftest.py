"""A tiny backbone of one's own, references on disk, and a run of the loop."""

import copy
from contextlib import contextmanager

import lightning as L
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from escdiff.cli import train
from escdiff.training.loop import run as run_module
from escdiff.training.method import setup as method_setup

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8, "projection_dim": 12}  # fmt: skip


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """(patch tower, tower with projection), folders."""
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(root / "patches")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER)).save_pretrained(root / "projected")
    return root / "patches", root / "projected"


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """A folder of two pictures."""
    folder = tmp_path_factory.mktemp("mug")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def fresh(tiny_backbone):
    """Makes backbones with a U-Net of their own, since some methods change it; the other parts are shared."""

    def make():
        shared = {part: getattr(tiny_backbone, part) for part in ("vae", "text_encoder", "tokenizer", "scheduler")}
        return tiny.make_backbone(unet=copy.deepcopy(tiny_backbone.unet), name=tiny_backbone.name, **shared)

    return make


@pytest.fixture
def backbone(fresh):
    return fresh()


@pytest.fixture
def door(tiny_folder, references, tmp_path):
    """Run `python train.py method=NAME data.references=...` in this process; gives the run's folder."""

    def run(name, *arguments, steps=2, source=references, folder="run"):
        common = [f"backbone.name={tiny_folder}", "data.batch_size=2", f"trainer.max_steps={steps}",
                  "trainer.threads=1", "trainer.log_steps=1", f"run_dir={tmp_path / folder}"]  # fmt: skip
        if source is not None:
            common.append(f"data.references={source}")
        train._main([f"method={name}", *common, *arguments])
        return tmp_path / folder

    return run


class StopAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


@pytest.fixture
def stopped_at(monkeypatch):
    """Within `with stopped_at(step):` runs stop cleanly behind that step."""
    real = run_module.make_trainer

    @contextmanager
    def within(step):
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "make_trainer", lambda *given: real(*given[:-1], [*given[-1], StopAt(step)]))
            yield

    return within


@pytest.fixture
def fit(door, fresh, monkeypatch):
    """As `door`, but the backbone is not read from disk each time."""
    monkeypatch.setattr(method_setup, "make_backbone", lambda config, whole: fresh())
    monkeypatch.setattr(method_setup, "PRIOR_STEPS", 2)
    return door
