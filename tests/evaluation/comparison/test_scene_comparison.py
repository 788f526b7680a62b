"""The comparison of scenes: its cases are what the methods read, and every contender gets its row."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image
from typer.testing import CliRunner

from escdiff.backbone import load_backbone
from escdiff.evaluation import __main__ as door
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.scenes.readings import judge, truths
from escdiff.evaluation.comparison.customize import ALIKE
from escdiff.evaluation.comparison.scenes import run as scenes
from escdiff.evaluation.comparison.scenes.cases import TASKS, draw_cases, families
from escdiff.evaluation.comparison.scenes.contenders import CONTENDERS
from escdiff.methods.build import find_method
from escdiff.mini.data.sheets import main_colors
from escdiff.mini.scene_oracle import SceneOracle
from escdiff.mini.world import scenes as world
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError
from escdiff.training.method import setup as method_setup
from escdiff.training.method.references import References


@pytest.mark.parametrize("task", TASKS)
def test_cases_are_what_their_methods_read(task, tmp_path):
    one, again = draw_cases(task, 0, 1, 3)[0], draw_cases(task, 0, 2, 3)[0]
    assert one == again  # more cases begin with the same ones
    one.save(tmp_path, size=32)
    for name, contender in CONTENDERS[task].items():
        if not contender.method:
            continue
        settings = compose("train", [f"method={contender.method}"]).method
        kind = find_method(settings["_target_"])
        assert set(contender.settings) <= set(settings), name
        sources = [tmp_path / f"{i}.png" for i in range(len(one.names))] or [tmp_path]
        found = [References.read(source, 32, kind.few, kind.many, kind.needs) for source in sources]
        assert sum(len(each.names) for each in found) == len(one.references)
        placeholder = {"several": "<asset", "relation": "<relation>", "action": "<action>"}
        placeholder |= {"compose": "<two>", "identity": "<concept>"}
        texts = [text for each in found for text in each.texts]
        assert all(placeholder[task] in text for text in [ask.prompt for ask in one.asks] + texts)
        assert not one.names or all(each.masks.any() for each in found)


def test_each_thing_is_asked_for_alone_then_both(tmp_path):
    case = draw_cases("several", 3, 1, 3)[0]
    shown, (first, second, both) = families(case.references[0].picture), [ask.request for ask in case.asks]
    assert families(first.expected) == shown[:1] and families(second.expected) == shown[1:] == case.words[1:]
    for request in (first, second):  # what leaks is the other one
        assert families(request.references["shape"])[0] == families(request.expected)[0]
    assert families(both.expected) == shown and both.expected.scene != case.references[0].picture.scene
    assert [families(both.references[name])[0] for name in ("one", "two")] == list(shown)


def test_pairs_and_bodies_are_unseen():
    relation, action = (draw_cases(task, 1, 1, 4)[0] for task in ("relation", "action"))
    learned = {families(reference.picture) for reference in relation.references}
    assert {r.picture.relation for r in relation.references} <= set(world.UNNAMED_RELATIONS)
    for ask in relation.asks:
        assert families(ask.request.expected) not in learned
        assert ask.request.expected.relation == relation.references[0].picture.relation
    bodies = {families(reference.picture) for reference in action.references}
    for ask in action.asks:
        assert families(ask.request.expected) not in bodies
        assert ask.request.expected.names == action.references[0].picture.names
    for reference in action.references:  # the counterpart differs in the pose alone
        own, other = reference.picture.things[0], reference.other.things[0]
        assert own.pose != other.pose and replace(other, pose=own.pose) == own


def test_two_things_come_from_pictures_of_their_own_and_a_face_has_other_expressions():
    two, face = (draw_cases(task, 1, 1, 4)[0] for task in ("compose", "identity"))
    for ask in two.asks:
        request, things = ask.request, ask.request.expected.things
        assert [request.references[name].things[0].shape for name in two.names] == [thing.shape for thing in things]
        assert things[0].shape.family != things[1].shape.family and families(request.expected) == two.words
        assert not set(main_colors(things[0])) & set(main_colors(things[1]))
        assert all(f"<{name}>" in ask.prompt and f"<{name}>" in request.prompt for name in two.names)
        asked = truths([request.expected])[0]
        exchanged = [dict(asked["things"][i], color=asked["things"][1 - i]["color"]) for i in (0, 1)]
        assert judge(request, asked) == {"pair": 1, "pair_bind": 1, "swapped": 0}
        assert judge(request, {**asked, "things": exchanged}) == {"pair": 1, "pair_bind": 0, "swapped": 1}
        assert judge(request, {**asked, "things": exchanged[:1]}) == {"pair": 0, "pair_bind": 0, "swapped": 1}
    shown = face.references[0].picture
    for ask in face.asks:
        request = ask.request
        assert request.expected.things[0].shape == shown.things[0].shape
        assert request.expected.names["expression"] != shown.names["expression"]
        assert request.expected.names["expression"] in ask.prompt


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, tiny_folder, tiny_backbone):
    """One case of each task, judged by an oracle that has learned nothing."""
    root = tmp_path_factory.mktemp("scenes")

    def short(contender):
        steps = (2, 2) if contender.steps[1] else (0, 0)
        return replace(contender, steps=steps, learn=(1, 1) if contender.learn[1] else (0, 0))

    backbone = load_backbone(str(tiny_folder))
    models = Models(
        backbone, None, None, steps=1, guidance=2.0, fingerprints=("x", "", "z"), scene_oracle=SceneOracle()
    )
    methods = ("break_a_scene", "fastcomposer", "reversion", "adi", "portraitbooth", "caption")  # not without a part
    tasks = {
        task: {name: short(one) for name, one in own.items() if name in methods} for task, own in CONTENDERS.items()
    }
    made = scenes.SceneComparison(models, root, tasks, 1, 2, quick=True, data=str(root / "world"), samples=4)

    def fresh(config, whole):
        unet, parts = copy.deepcopy(tiny_backbone.unet), ("vae", "text_encoder", "tokenizer", "scheduler")
        return tiny.make_backbone(unet=unet, name=backbone.name, **{p: getattr(tiny_backbone, p) for p in parts})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_setup, "make_backbone", fresh)
        patch.setattr(method_setup, "PRIOR_STEPS", 1)
        patch.setitem(ALIKE, "data.batch_size", 1)
        yield made, made.run("the command")


@pytest.mark.slow
def test_every_contender_gets_its_row_and_its_pictures(comparison):
    made, table = comparison
    assert {task: set(rows) for task, rows in table.items()} == {task: set(own) for task, own in made.tasks.items()}
    expected = {"several": {"extract", "extract_leak"}, "relation": {"relation"}, "action": {"pose", "body", "all"}}
    expected |= {"compose": {"pair", "pair_bind", "swapped"}, "identity": {"face_id", "expression", "hair", "all"}}
    for task, rows in table.items():
        for name, row in rows.items():
            assert expected[task] <= set(row["scores"]), (task, name)
            optimised = bool(made.tasks[task][name].steps[1])
            assert row["steps"] == (2 if optimised else 0) and (row["seconds"] is None) == (name == "caption")
            assert row["learning_steps"] == (0 if optimised or name == "caption" else 1)
    text = (made.out / "scenes.md").read_text(encoding="utf-8")
    assert "`the command`" in text and "## relation" in text and "| reversion: " in text
    for task, own in made.tasks.items():
        sheet = Image.open(made.out / f"scenes-{task}.png")
        assert sheet.height > (1 + len(own)) * 128 and np.asarray(sheet).std() > 0
    assert json.loads((made.out / "scenes.json").read_text(encoding="utf-8"))["tasks"] == table


@pytest.mark.slow
def test_a_second_call_makes_nothing_again(comparison, monkeypatch):
    made, table = comparison

    def forbidden(*arguments, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(scenes, "generate", forbidden)
    monkeypatch.setattr("escdiff.training.method.module.MethodModule.training_step", forbidden)
    own = {"quick": True, "data": made.data, "samples": made.samples}
    assert scenes.SceneComparison(made.models, made.out, made.tasks, 1, 2, **own).run() == table
    with pytest.raises(AssertionError, match="made again"):
        scenes.SceneComparison(made.models, made.out, made.tasks, 2, 2, **own).run()


@pytest.mark.parametrize("tasks", ["", "dancing"])
def test_the_door_names_its_tasks(tasks, tmp_path):
    result = CliRunner().invoke(door.app, ["scenes", "--out", str(tmp_path), "--tasks", tasks])
    assert isinstance(result.exception, UserError) and "several, compose, relation, action, identity" in str(
        result.exception
    )
