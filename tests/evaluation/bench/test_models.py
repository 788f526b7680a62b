"""What the models of a bench are given, and what they leave as it was."""

from dataclasses import replace

import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from escdiff.backbone.branches import add_branches
from escdiff.concept import Concept
from escdiff.control import Control
from escdiff.evaluation.bench.models import Models, fingerprint
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.evaluation.comparison import run as compare
from escdiff.evaluation.comparison.cases import draw_cases, draw_references
from escdiff.evaluation.comparison.contenders import choose
from escdiff.evaluation.comparison.scenes import run as scenes
from escdiff.evaluation.comparison.scenes.cases import draw_cases as draw_scenes
from escdiff.evaluation.comparison.scenes.contenders import CONTENDERS
from escdiff.evaluation.editing.cases import make_cases
from escdiff.evaluation.editing.edits import EDITS, draw_edits
from escdiff.evaluation.editing.tools import Tools
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


@pytest.fixture
def branched(real_models):
    """Models whose encoder has branches that change every picture."""
    backbone, encoder = real_models.backbone, real_models.encoder
    unet = tiny.make_unet().requires_grad_(False)
    add_branches(unet, 2)
    with torch.no_grad():
        for parameter in (p for key, p in unet.named_parameters() if ".lora_" in key):
            parameter.normal_(std=0.5)
    encoder.config = replace(encoder.config, branch_rank=2)
    return replace(real_models, backbone=replace(backbone, unet=unet))


def after_both(models, paint):
    """What is painted after words alone, and after references."""
    found = []
    for references in ({}, {"shape": Image.new("RGB", (64, 64), "red")}):
        models.paint(TASKS["text"].draw(0, 1), [references], [1], lambda count: None)
        found.append(paint())
    return found


def test_an_edit_is_the_same_whatever_was_painted_before(branched):
    before = Image.new("RGB", (128, 128), "gray")
    edit = lambda: branched.edit(before, "a photo of a mug", "a photo of a red mug", 0).tobytes()  # noqa: E731
    words, references = after_both(branched, edit)
    assert words == references


def test_captions_are_painted_without_branches(branched, tmp_path):
    made = scenes.SceneComparison(branched, tmp_path, CONTENDERS, cases=1, each=1)
    (case,) = draw_scenes("several", 0, 1, 1)
    paint = lambda: made.paint("several", "caption", 0, case, [0])[0][1]["result"].tobytes()  # noqa: E731
    words, references = after_both(branched, paint)
    assert words == references


def test_other_methods_are_painted_without_branches(branched, tmp_path, monkeypatch):
    seen, concepts = [], [branched.encoder.encode(Image.new("RGB", (64, 64), "red"))]
    concepts.append(replace(concepts[0], branches={}))
    made = compare.Comparison(branched, tmp_path, choose("xti"), references=2, per_reference=1)
    monkeypatch.setattr(made, "place", lambda name, i: tmp_path)
    monkeypatch.setattr(compare, "generate", lambda *_, **__: seen.append(active(branched)) or [])
    for concept in concepts:
        monkeypatch.setattr(Concept, "load", lambda path, concept=concept: concept)
        made._pictures("xti", "both", draw_cases("both", draw_references(0, 2), 1, 0), lambda count: None)
    assert seen == [["shape", "appearance"], []]


def active(models):
    return list(models.backbone.unet.active_adapters())


def test_editors_use_branches_for_concepts_alone(branched):
    cases = make_cases(draw_edits(0, 1))
    tools = Tools(replace(branched, steps=2))
    results, editors = {}, ["img2img", "plug_and_play", "attribute_transfer"]
    for names in (editors, editors[::-1]):
        tools._sources.clear()
        for name in names:
            results.setdefault(name, []).append(EDITS.editors[name](tools, cases[0]).tobytes())
    assert all(first == second for first, second in results.values())


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


def test_a_fingerprint_is_of_contents(tmp_path):
    """Else a table started in one clone would be painted anew in another."""
    for name in ("here", "there"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "config.json").write_bytes(b"weights")
    here, there = tmp_path / "here", tmp_path / "there"
    first = fingerprint("mini", here)
    assert fingerprint("mini", there) == first != fingerprint("another", here)
    assert fingerprint(here / "unet" / "config.json") == fingerprint(there / "unet" / "config.json")
    assert fingerprint(tmp_path / "gone") != fingerprint(tmp_path / "lost")
    (there / "unet" / "config.json").write_bytes(b"weighty")
    assert fingerprint("mini", there) != first
    (there / "unet" / "config.json").rename(there / "config.json")
    (there / "config.json").write_bytes(b"weights")
    assert fingerprint("mini", there) != first
