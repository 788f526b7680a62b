from types import SimpleNamespace

import pytest
import toy_training

from escdiff.training import run


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(run.RECIPES, "toy", "toy_training:build")
    monkeypatch.setattr(run, "ensure_data", lambda config: None)
    toy_training.FINISHED.clear()
    trainer = SimpleNamespace(max_steps=6, accelerator="cpu", devices=1, log_steps=2, save_steps=2, accumulate=1)
    return SimpleNamespace(
        recipe="toy", seed=3, run_dir=str(tmp_path / "run"), resume=True, break_from=99,
        data=SimpleNamespace(batch_size=3), optim=SimpleNamespace(ema=0.9), trainer=trainer,
    )  # fmt: skip
