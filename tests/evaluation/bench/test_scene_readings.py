"""Each score of a scene by hand, and what the requests of scenes promise."""

from dataclasses import replace

import numpy as np
import pytest

from escdiff.evaluation.bench.instances import SEEN_FAMILIES
from escdiff.evaluation.bench.scenes import readings, requests
from escdiff.evaluation.bench.scenes.faces import VIEWS, lineup
from escdiff.evaluation.bench.scenes.requests import EDITS, KINDS, SceneRequest
from escdiff.mini.world import scenes
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.geometry.faces import EXPRESSIONS, FACE, IDENTITY
from escdiff.mini.world.geometry.figures import POSES, pose_angles
from escdiff.mini.world.world import Material, Scene, Shape

LEFT, RIGHT = [0.05, 0.4, 0.4, 0.8], [0.6, 0.4, 0.95, 0.8]


def material(color, color2="white", pattern="plain"):
    return Material(color, color2, pattern, 0.8, 0.0, "matte", 0.5, (0.0,) * 3, (0.0,) * 3, 1)


def thing(family, color, **fields):
    return Thing(Shape(family, (0.5,) * 4), material(color), **fields)


MUG, CUBE = thing("mug", "red"), thing("cube", "blue")
SCENE = Scene("beige", 0.3, 0.0, 0.0, 0.4, 1.0, 0.0, 0.0)
BOTH = Arrangement((MUG, CUBE), SCENE, "left of", -0.8)


def seen(family, color, box=LEFT):
    return {"family": family, "color": color, "box": box}


def reading(*things, **words):
    return {"things": list(things), "relation": "", "pose": "", "expression": "", "background": "beige", **words}


def judged(kind, expected, read, **fields):
    return readings.judge(SceneRequest(kind, "", expected, **fields), read)


RED_MUG, BLUE_CUBE = seen("mug", "red"), seen("cube", "blue", RIGHT)


@pytest.mark.parametrize(
    ("read", "there", "bound"),
    [
        ((RED_MUG, BLUE_CUBE), 1, 1),
        ((seen("mug", "blue"), seen("cube", "red", RIGHT)), 1, 0),  # colours exchanged
        ((RED_MUG,), 0, 0),
        ((RED_MUG, seen("mug", "blue", RIGHT)), 0, 0),  # two of one
        ((RED_MUG, BLUE_CUBE, seen("star", "green")), 1, 1),
        ((), 0, 0),
    ],
)
def test_two_things_are_there_and_bound_to_their_colors(read, there, bound):
    assert judged("bind", BOTH, reading(*read)) == {"there": there, "bind": bound}
    assert judged("pair", BOTH, reading(*read)) == {"pair": there, "pair_bind": bound}


@pytest.mark.parametrize(
    ("read", "alone", "leak"),
    [
        ((RED_MUG,), 1, 0),
        ((RED_MUG, BLUE_CUBE), 0, 1),  # the reference again
        ((BLUE_CUBE,), 0, 1),
        ((seen("mug", "green"),), 0, 0),
        ((), 0, 0),
    ],
)
def test_one_thing_is_taken_out_alone(read, alone, leak):
    target = Arrangement((MUG,), SCENE)
    references = {"shape": BOTH, "appearance": BOTH}
    assert judged("extract", target, reading(*read), references=references) == {"extract": alone, "extract_leak": leak}


def test_a_relation_needs_both_things_its_name_and_their_order():
    def score(*things, relation="beside"):
        return judged("relation", BOTH, reading(*things, relation=relation))["relation"]

    assert score(RED_MUG, BLUE_CUBE) == 1
    assert score(seen("mug", "red", RIGHT), seen("cube", "blue", LEFT)) == 0  # the wrong way round
    assert score(RED_MUG, BLUE_CUBE, relation="on") == 0 and score(RED_MUG) == 0


def test_things_are_in_their_boxes_by_half_of_the_union():
    boxes = {"red mug": tuple(LEFT), "blue cube": tuple(RIGHT)}

    def score(*things):
        return judged("place", BOTH, reading(*things), boxes=boxes)

    assert score(RED_MUG, BLUE_CUBE) == {"place": 1, "iou": 1}
    wide = [RIGHT[0] - 0.175, *RIGHT[1:]]  # half as wide again: two thirds of the union
    found = score(RED_MUG, seen("cube", "blue", wide))
    assert found["place"] == 1 and found["iou"] == pytest.approx((1 + 2 / 3) / 2)
    assert score(RED_MUG) == {"place": 0, "iou": 0.5}
    assert score(seen("mug", "red", RIGHT), seen("cube", "blue", LEFT)) == {"place": 0, "iou": 0}


def test_a_pose_is_right_on_the_body_and_in_the_material_of_the_words():
    figure = Arrangement((thing("robot", "red", pose=pose_angles("unnamed2")),), SCENE, names={"pose": "unnamed2"})
    right = judged("pose", figure, reading(seen("robot", "red"), pose="unnamed2"))
    assert right == dict.fromkeys(("pose", "body", "color", "all", "unnamed"), 1)
    copied = judged("pose", figure, reading(seen("bear", "green"), pose="unnamed2"))
    assert copied["pose"] == copied["unnamed"] == 1 and copied["body"] == copied["color"] == copied["all"] == 0
    named = replace(figure, names={"pose": "waving"})
    assert judged("pose", named, reading(seen("robot", "red"), pose="bowing")) == {
        "pose": 0, "body": 1, "color": 1, "all": 0,
    }  # fmt: skip


def test_a_faces_expression_and_hair():
    face = Thing(Shape(FACE, (0.5,) * 12), material("brown"), face=EXPRESSIONS["sad"])
    picture = Arrangement((face,), SCENE, names={"expression": "sad"})
    assert judged("identity", picture, reading(seen(FACE, "brown"), expression="sad")) == {"expression": 1, "hair": 1}
    assert judged("identity", picture, reading(seen(FACE, "black"), expression="angry")) == {"expression": 0, "hair": 0}


def test_an_edit_reads_as_done_if_the_judge_sees_the_picture_after_and_nothing_else():
    after = BOTH.with_thing(0, material=material("green"))
    score = lambda kind, *things, **words: judged(kind, after, reading(*things, **words), before=BOTH)  # noqa: E731
    assert score("color", seen("mug", "green"), BLUE_CUBE) == {"reads": 1}
    assert score("color", RED_MUG, BLUE_CUBE) == {"reads": 0}
    assert score("color", seen("mug", "green"), BLUE_CUBE, seen("star", "red")) == {"reads": 0}
    assert score("color", seen("mug", "green"), BLUE_CUBE, background="navy") == {"reads": 0}
    assert score("pattern", seen("mug", "green"), BLUE_CUBE) == {}  # not read
    striped = BOTH.with_thing(0, material=material("green", "red", "striped"))
    assert judged("color", striped, reading(seen("mug", "red"), BLUE_CUBE), before=BOTH) == {}  # red may be either


def test_either_color_of_a_pattern_that_treats_both_alike_will_do():
    striped = Arrangement((replace(MUG, material=material("red", "white", "striped")), CUBE), SCENE, "left of", -0.8)
    for color, right in (("red", 1), ("white", 1), ("blue", 0)):
        assert judged("bind", striped, reading(seen("mug", color), BLUE_CUBE))["bind"] == right


@pytest.mark.parametrize("drawn", [requests.scene, requests.pose, requests.identity, requests.edit_pair])
def test_more_requests_begin_with_the_same_ones_and_seeds_differ(drawn):
    few, more = drawn(0, 3), drawn(0, 6)
    assert more[:3] == few and drawn(1, 3) != few
    assert len({str(request.expected) for request in more}) == 6


def test_kinds_relations_poses_and_edits_take_turns():
    asked = requests.scene(0, 5 * len(scenes.RELATIONS))
    assert [request.kind for request in asked[:5]] == list(KINDS)
    assert [r.expected.relation for r in asked if r.kind == "relation"] == list(scenes.RELATIONS)
    assert all(len(r.expected.things) == (1 if r.kind == "extract" else 2) for r in asked)
    for request in asked:
        for picture in request.references.values():
            assert all(one.shape.family in SEEN_FAMILIES for one in picture.things)  # the encoder knows them
    named = [request.expected.names["pose"] in POSES for request in requests.pose(0, 6)]
    assert named == [True, False] * 3
    assert [request.kind for request in requests.edit_pair(0, 12)] == [*EDITS, *EDITS]


def test_boxes_are_those_of_the_things_they_name():
    (request,) = [r for r in requests.scene(0, 5) if r.kind == "place"]
    (truth,) = readings.truths([request.expected])
    by_family = {one["family"]: one["box"] for one in truth["things"]}
    for (phrase, box), own in zip(request.boxes.items(), request.expected.things, strict=True):
        assert phrase.endswith(own.shape.family) and list(box) == by_family[own.shape.family]


def test_a_line_up_of_faces_is_eight_identities_in_different_views():
    rng = np.random.default_rng(0)
    face = tuple(rng.random(len(IDENTITY)).round(5).tolist())
    shown = lineup(face)
    assert shown == lineup(face) != lineup(face[::-1]) and len(shown) == 8 * VIEWS
    identities = [picture.things[0].shape.params for picture in shown]
    assert identities[:VIEWS] == [face] * VIEWS and len(set(identities)) == 8
    assert len({picture.scene for picture in shown}) == len(shown)
