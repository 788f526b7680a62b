"""A tiny backbone of one's own, references on disk, and a run of the loop."""

import numpy as np
import pytest
from PIL import Image

from escdiff.backbone import load_backbone
from escdiff.cli import train


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """A folder of two pictures."""
    folder = tmp_path_factory.mktemp("mug")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def backbone(tiny_folder):
    """Fresh, since some methods change its U-Net."""
    return load_backbone(str(tiny_folder))


@pytest.fixture
def fit(tiny_folder, references, tmp_path):
    """Run `python train.py method=NAME data.references=...` in this process; gives the run's folder."""

    def run(name, *arguments, steps=2, source=references, folder="run"):
        common = [f"backbone.name={tiny_folder}", "data.batch_size=2", f"trainer.max_steps={steps}",
                  "trainer.threads=1", "trainer.log_steps=1", f"run_dir={tmp_path / folder}"]  # fmt: skip
        if source is not None:
            common.append(f"data.references={source}")
        train._main([f"method={name}", *common, *arguments])
        return tmp_path / folder

    return run
