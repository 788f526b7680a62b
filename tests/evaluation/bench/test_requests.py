"""What the tasks ask in words, of strangers and of what has no name; how records and settings are kept."""

from dataclasses import replace

import pytest

from escdiff.evaluation.bench.instances import in_new_scene, stream
from escdiff.evaluation.bench.records import Record, load_task, save_task
from escdiff.evaluation.bench.requests import appearance_of, shape_of, swap_of
from escdiff.evaluation.bench.run import Bench
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.mini.data.lineups import differ
from escdiff.mini.world import world
from escdiff.mini.world.captions import describe
from escdiff.mini.world.world import THING


def drawn(name, count=8, seed=0):
    return TASKS[name].draw(seed, count)


@pytest.mark.parametrize(("words", "of", "length"), [
    ("words_brief", "both", "brief"), ("words_full", "both", "full"), ("nameless_words", "nameless", "full"),
])  # fmt: skip
def test_words_are_asked_for_the_very_instances_that_concepts_are(words, of, length):
    for said, shown in zip(drawn(words), drawn(of), strict=True):
        assert said.expected == shown.expected and not said.references
        assert said.prompt == describe(shown.expected, length).text and "<" not in said.prompt


def test_full_words_say_more_than_brief_ones():
    for brief, full in zip(drawn("words_brief"), drawn("words_full"), strict=True):
        assert brief.expected == full.expected and len(full.prompt) > len(brief.prompt)
        assert brief.expected.shape.family in brief.prompt and brief.expected.material.color in brief.prompt


def test_ceiling_and_stranger_stand_in_for_the_pictures_of_both():
    for both, ceiling, stranger in zip(drawn("both"), drawn("ceiling"), drawn("stranger"), strict=True):
        assert ceiling.expected == stranger.expected == both.expected and ceiling.shown is None
        shown = stranger.shown
        assert shown.scene == both.expected.scene and shown.shape.family == both.expected.shape.family
        assert shown.material.pattern == both.expected.material.pattern
        assert differ(shown.shape, both.expected.shape) or differ(shown.material, both.expected.material)
        assert shown.shape != both.expected.shape and shown.material != both.expected.material


def test_nameless_are_things_and_textures_by_turns():
    for i, request in enumerate(drawn("nameless")):
        thing, texture = request.expected.shape.family == THING, request.expected.material.pattern == world.TEXTURED
        assert (thing, texture) == ((False, True) if i % 2 else (True, False))
        seed = request.expected.material.seed if i % 2 else request.expected.shape.seed
        assert world.purpose_of(seed) == "bench"  # never seen by the models or the judge


def test_a_request_asks_for_what_its_reference_lacks(mug):
    """The mug is red and white, on navy."""
    for seed in range(12):
        shape, appearance = shape_of(mug, stream(seed, 4)), appearance_of(mug, stream(seed, 5))
        assert shape.expected.shape == mug.shape and appearance.expected.material == mug.material
        assert not {"red", "white"} & {shape.expected.material.color, shape.expected.material.color2}
        assert appearance.expected.shape.family != "mug" and appearance.expected.shape.family in appearance.prompt
        assert shape.expected.scene.background != "navy" != appearance.expected.scene.background
        assert shape.references == {"shape": mug} and appearance.references == {"appearance": mug}


def test_a_swap_takes_the_shape_of_one_and_the_material_of_the_other(mug):
    other = in_new_scene(drawn("both", 1)[0].expected, stream(0, 0))
    swap = swap_of(mug, other, stream(0, 6))
    assert (swap.expected.shape, swap.expected.material) == (mug.shape, other.material)
    assert swap.references == {"shape": mug, "appearance": other}


def test_records_come_back_as_they_were_kept(tmp_path):
    (request,) = drawn("shape", 1)
    record = Record(request, {"family": "mug"}, {"family": 1.0}, {"result": "a.png"})
    save_task(tmp_path, "shape", "abc", 1.26, [record])
    assert load_task(tmp_path, "shape", "abc") is None  # its picture is not there
    (tmp_path / "a.png").touch()
    assert load_task(tmp_path, "shape", "abc") == (1.26, [record])
    assert load_task(tmp_path, "shape", "abd") is None and load_task(tmp_path, "both", "abc") is None
    (tmp_path / "tasks" / "shape.json").write_text('{"settings": "abc"}', encoding="utf-8")
    assert load_task(tmp_path, "shape", "abc") is None


def test_settings_are_all_that_a_tasks_figures_depend_on(bench: Bench):
    before = {name: bench.settings(name) for name in TASKS}
    assert len(set(before.values())) == len(TASKS)

    def changed(**values):
        other = replace(bench, **values)
        return {name for name in TASKS if other.settings(name) != before[name]}

    assert changed(seed=1) == set(TASKS)
    assert changed(out=bench.out / "elsewhere", seconds={"both": 1.0}) == set()
    more = changed(numbers=bench.numbers | {"both": 9})
    assert more == {"both", "floor", "edit", "copy"}  # it, and those that look at its pictures
    models = bench.models
    models.steps += 1
    assert changed() == set(TASKS)
    models.steps -= 1
    models.fingerprints = ("x", "another encoder")
    assert changed() == {name for name, task in TASKS.items() if task.needs_encoder}
    assert "words_full" not in changed() and {"both", "leak", "floor"} <= changed()
