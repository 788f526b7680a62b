import json

from escdiff.conditioning.text_tower import PLACEHOLDER
from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.tasks import DERIVE, TASKS, in_order
from escdiff.mini.world import world

CONCEPTS = [name for name, task in TASKS.items() if task.concept and task.request is Request]


def drawn(name, count=36):
    return TASKS[name].draw(0, count)


def test_held_out_families_and_patterns_appear_in_held_out_only():
    families, patterns = set(world.HELD_OUT_FAMILIES), set(world.HELD_OUT_PATTERNS)
    for name in CONCEPTS:
        for request in drawn(name):
            for factors in (request.expected, *request.references.values()):
                strange = factors.shape.family in families, factors.material.pattern in patterns
                assert strange == ((True, True) if name == "held_out" else (False, False)), name


def test_requests_repeat_survive_json_and_differ_between_tasks_and_seeds():
    for name, task in TASKS.items():
        if task.make != DERIVE:
            requests = drawn(name, 4)
            again = [task.request.from_dict(json.loads(json.dumps(r.to_dict()))) for r in requests]
            assert requests == drawn(name, 4) == again, name
            assert requests != task.draw(1, 4)
    assert drawn("oracle", 4) != drawn("text", 4)
    assert drawn("both", 8)[:4] == drawn("both", 4)


def test_prompts_hold_the_placeholders_of_their_references():
    holds = {
        "both": {"<concept>"},
        "held_out": {"<concept>"},
        "nameless": {"<concept>"},
        "shape": {"<shape>"},
        "appearance": {"<appearance>"},
    }
    for name in CONCEPTS:
        for request in drawn(name, 9):
            found = {match.group() for match in PLACEHOLDER.finditer(request.prompt)}
            assert found == holds.get(name, {"<shape>", "<appearance>"})
            assert request.expected.scene.background in request.prompt


def test_both_asks_for_the_same_object_elsewhere():
    for request in drawn("both"):
        assert request.shape is request.appearance
        assert (request.expected.shape, request.expected.material) == (request.shape.shape, request.shape.material)
        assert request.expected.scene.background != request.shape.scene.background


def test_shape_appearance_and_words_ask_for_the_instances_of_both():
    asked = zip(*(drawn(name, 6) for name in ("both", "shape", "appearance", "words_full", "words_brief")), strict=True)
    for both, shape, appearance, full, brief in asked:
        assert shape.shape == appearance.appearance == both.shape
        assert full.expected == brief.expected == both.expected and len(full.prompt) >= len(brief.prompt)


def test_words_beside_a_concept_never_repeat_its_reference_and_chance_is_a_third_one():
    for request in drawn("shape"):
        colors = {request.expected.material.color, request.expected.material.color2}
        assert request.shape.material.color not in colors and request.expected.shape == request.shape.shape
        assert request.other.material.color not in colors | {request.shape.material.color}
    for request in drawn("appearance"):
        families = {request.expected.shape.family, request.appearance.shape.family, request.other.shape.family}
        assert len(families) == 3 and request.expected.material == request.appearance.material


def test_swap_is_a_whole_matrix_of_different_rows_and_columns():
    requests = drawn("swap", 64)
    assert len(requests) == 64 and len({(r.shape, r.appearance) for r in requests}) == 64
    assert len({r.shape.shape.family for r in requests}) == 8
    materials = {r.appearance.material for r in requests}
    assert len({m.pattern for m in materials}) == len({m.color for m in materials}) == 8


def test_needed_tasks_come_first_and_the_oracle_always():
    assert in_order(["text"]) == ["oracle", "text"]
    assert in_order(["leak"]) == ["oracle", "shape", "appearance", "leak"]
    order = list(TASKS)
    assert all(order.index(need) < order.index(name) for name, task in TASKS.items() for need in task.needs)
