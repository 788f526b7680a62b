"""What the models of a bench are given, and what they leave as it was."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from escdiff.control import Control
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.mini.scene_oracle import SceneOracle, SceneOracleConfig
from escdiff.support.errors import UserError


class Counting(Control):
    """Notes the steps that it is asked before."""

    def __init__(self):
        self.steps = []

    def before(self, step, latents):
        self.steps.append(step.index)
        return latents


def test_controls_steer_every_step_of_every_batch(real_models):
    real_models.steps, real_models.batch_size = 2, 2
    control, done = Counting(), []
    real_models.paint(TASKS["text"].draw(0, 3), [{}] * 3, [1, 2, 3], done.append, [control])
    assert control.steps == [0, 1, 0, 1] and done == [2, 1]


def test_an_edit_leaves_the_scheduler_as_it_was_even_where_it_fails(real_models, monkeypatch):
    own = EulerDiscreteScheduler.from_config(real_models.backbone.scheduler.config)
    monkeypatch.setattr(real_models.backbone, "scheduler", own)  # other tests have this backbone, too
    before = Image.new("RGB", (128, 128), "gray")
    picture = real_models.edit(before, "a photo of a mug", "a photo of a red mug", 0)
    assert picture.size == (128, 128) and real_models.backbone.scheduler is own
    with pytest.raises(UserError):
        real_models.edit(before.resize((50, 50)), "a photo of a mug", "a photo of a red mug", 0)
    assert real_models.backbone.scheduler is own


def test_a_scene_oracle_is_loaded_where_there_is_one_and_missed_where_it_was_named(tiny_folder, oracle, tmp_path):
    oracle.save_pretrained(tmp_path / "oracle")
    SceneOracle(SceneOracleConfig(channels=(4, 4, 8, 8), blocks=(0,) * 4, width=8)).save_pretrained(tmp_path / "scenes")
    load = lambda scenes: Models.load(str(tiny_folder), None, tmp_path / "oracle", False, 1, 1.0, scenes)  # noqa: E731
    with_judge, without = load(tmp_path / "scenes"), load(None)
    assert with_judge.scene_oracle.config.width == 8
    assert (without.scene_oracle is None) == (SceneOracle.find() is None)
    assert with_judge.fingerprints[:2] == without.fingerprints[:2] and with_judge.fingerprints != without.fingerprints
    with pytest.raises(UserError, match="no scene_oracle in"):
        load(tmp_path / "none")


def test_nothing_is_encoded_for_words_alone(real_models):
    real_models.encoder = None
    assert real_models._vectors([{}, {}]) == {}


def test_references_of_one_batch_stay_apart(real_models):
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    together = real_models._vectors([{"shape": red}, {"shape": blue}])["<shape>"]
    alone = [real_models._vectors([{"shape": one}])["<shape>"] for one in (red, blue)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
