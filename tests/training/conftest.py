import pytest
import toy_training

from escdiff.support.config.data import DataConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.training.loop.recipe import RECIPES


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", "toy_training:build")
    toy_training.FINISHED.clear()
    trainer = TrainerConfig(
        max_steps=6, accelerator="cpu", devices=1, log_steps=2, save_steps=2, val_steps=0, sample_steps=0
    )
    config = TrainConfig(
        recipe="toy", seed=3, run_dir=str(tmp_path / "run"), data=DataConfig(batch_size=3), optim=OptimConfig(ema=0.9),
        trainer=trainer,
    )  # fmt: skip
    config.break_from = 99  # the toy's
    return config
