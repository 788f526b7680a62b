"""A tiny backbone of one's own, references on disk, and a run of the loop."""

import copy

import numpy as np
import pytest
import tiny
from PIL import Image

from escdiff.cli import train
from escdiff.training import method_setup


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


@pytest.fixture
def fit(door, fresh, monkeypatch):
    """As `door`, but the backbone is not read from disk each time."""
    monkeypatch.setattr(method_setup, "make_backbone", lambda config: fresh())
    monkeypatch.setattr(method_setup, "PRIOR_STEPS", 2)
    return door
