"""The bench of steering: prompts of two things, a judge that sees them, and passes that are counted."""

from dataclasses import replace

import pytest

from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.editing import steering
from escdiff.evaluation.editing.cases import make_cases
from escdiff.evaluation.editing.run import EditBench
from escdiff.evaluation.editing.steering import STEERING, draw_steerings, judge, phrases, prompt_of
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.scene_oracle import SceneOracle
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def cases():
    return make_cases(draw_steerings(0, 3))


@pytest.fixture
def tools(tiny_backbone, oracle) -> Tools:
    scenes = SceneOracle.find(None)
    return Tools(Models(tiny_backbone, oracle, steps=3, guidance=2.0, fingerprints=("x", "", "z"), scene_oracle=scenes))


def test_a_case_is_two_plain_things_told_apart_by_words(cases):
    assert draw_steerings(0, 1) == draw_steerings(0, 2)[:1] != draw_steerings(1, 1)
    for case in cases:
        first, second = case.edit.after.things
        assert first.shape.family != second.shape.family and first.material.color != second.material.color
        assert not case.edit.before.things
        prompt = prompt_of(case)
        assert " and a" in prompt and all(phrase in prompt for phrase in phrases(case.edit.after))
        assert steering.places(case).boxes.keys() == set(phrases(case.edit.after))


def test_judging_tells_pairs_one_thing_and_wrong_colours_apart(cases, tools):
    case = cases[0]
    first, second = case.edit.after.things
    exchanged = case.edit.after.with_thing(0, material=second.material).with_thing(1, material=first.material)
    edits = [case.edit, replace(case.edit, after=exchanged), replace(case.edit, after=case.edit.after.without(1))]
    pictures = [made.after for made in make_cases(edits)]
    tools.passes = {0: 7}
    values = [record.values for record in judge(tools, [case] * 3, pictures)]
    assert values[0] == {"pair": 1.0, "bind": 1.0, "alone": 1.0, "passes": 7.0} and not tools.passes
    assert values[1] == {"pair": 1.0, "bind": 0.0, "alone": 1.0}
    assert values[2] == {"pair": 0.0, "bind": 0.0, "alone": 0.0}
    tools.models.scene_oracle = None
    with pytest.raises(UserError, match="scene oracle"):
        judge(tools, [case], [case.after])


def test_every_control_is_painted_and_counted(tools, tmp_path):
    table = EditBench(STEERING, tools, tmp_path, STEERING.choose("all"), 1).run("command")
    assert table.keys() == {"truth", "none", "random", "attend_excite", "conform", "boxes"}
    passes = {name: row["passes"]["mean"] for name, row in table.items() if "passes" in row}
    assert passes["none"] == 3 < passes["boxes"] and passes["random"] == passes["conform"] > passes["none"]
    assert "truth" not in passes and "| conform |" in (tmp_path / "steering.md").read_text(encoding="utf-8")
