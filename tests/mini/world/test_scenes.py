import json
import re
from dataclasses import replace

import numpy as np
import pytest

from escdiff.mini.parts import make_tokenizer
from escdiff.mini.world import scenes, world
from escdiff.mini.world.arrangement import Arrangement, Thing
from escdiff.mini.world.edits import KINDS, Edit, sample_edit
from escdiff.mini.world.geometry.extents import extent
from escdiff.mini.world.geometry.faces import EXPRESSIONS
from escdiff.mini.world.geometry.figures import BODIES, POSES, UNNAMED_POSES
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.scene_captions import JOINTS, SAID, scene_caption
from escdiff.mini.world.world import Material, Shape, sample_factors

ALL = scenes.RELATIONS + scenes.UNNAMED_RELATIONS
PLAIN = Material("red", "white", "plain", 0.5, 0.1, "matte", 0.5, (0.0,) * 3, (0.0,) * 3, 5)


def draw(relation: str, seed: int = 0) -> Arrangement:
    return scenes.sample_arrangement(np.random.default_rng([ALL.index(relation), seed]), (relation,))


def test_an_arrangement_of_one_thing_is_the_single_objects_picture():
    factors = [sample_factors(np.random.default_rng(i)) for i in range(12)]
    alone, arranged = render(factors, 64), render([Arrangement.of(f) for f in factors], 64)
    assert (alone.image == arranged.image).all() and (alone.mask == arranged.mask).all()
    assert (alone.depth == arranged.depth).all()
    assert all((w[0] == m).all() for w, m in zip(alone.whole, alone.mask, strict=True))
    assert all((v[0] == m).all() for v, m in zip(alone.visible, alone.mask, strict=True))


def test_extents_are_those_of_a_cube():
    low, high = extent(Thing(Shape("cube", (0.5, 0.5, 0.0, 0.0)), PLAIN, size=0.5))
    assert np.allclose(-low, high, atol=0.01) and np.allclose(high, (0.255, 0.285, 0.255), atol=0.01)
    low, high = extent(Thing(Shape("table", (1.0, 0.0, 1.0, 0.5)), PLAIN))
    assert high[0] > 0.9 > 0.66 > high[2] > 0.6 and -0.91 < low[1] < -0.89


@pytest.mark.parametrize("relation", ALL)
def test_things_stand_as_the_relation_says_and_fit_the_frame(relation):
    pictures = [draw(relation, seed) for seed in range(4)]
    out = render(pictures, 64)
    for i, picture in enumerate(pictures):
        (first, second), whole, visible = picture.things[:2], out.whole[i], out.visible[i]
        assert not whole[:, 0].any() and not whole[:, :, [0, -1]].any()
        a, b = boxes(whole)[:2]
        middle = {name: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for name, box in (("a", a), ("b", b))}
        seen = visible.sum((1, 2)) / whole.sum((1, 2))
        assert (seen > 0.15).all()
        if relation == "left of":
            assert a[2] < b[2] and middle["a"][0] < middle["b"][0]
        elif relation == "right of":
            assert middle["a"][0] > middle["b"][0]
        elif relation in ("on", "hovering above", "stacked upside down", "inside"):
            assert middle["a"][1] < middle["b"][1]
        elif relation == "under":
            assert b[0] < a[0] and a[2] < b[2] and a[1] > b[1]
        elif relation in ("in front of", "behind"):
            nearer = first.place[2] > second.place[2]
            assert nearer == (relation == "in front of")


def test_visible_parts_are_disjoint_and_lie_within_the_whole_ones():
    out = render([draw("in front of", seed) for seed in range(4)], 64)
    for whole, visible, mask in zip(out.whole, out.visible, out.mask, strict=True):
        assert not (visible & ~whole).any() and (visible.sum(0) <= 1).all()
        assert (visible.any(0) == mask).all()
    assert any(v.sum() < w.sum() for v, w in zip(out.visible, out.whole, strict=True))


def test_without_a_thing_everything_else_stays():
    picture = draw("left of", 5)
    whole, rest = render([picture], 64), render([picture.without(1)], 64)
    changed = (whole.image[0] != rest.image[0]).any(-1)
    assert (rest.whole[0][0] == whole.whole[0][0]).all()
    assert changed[whole.visible[0][1]].mean() > 0.9
    assert not changed[: int(64 * boxes(whole.whole[0])[1, 1]) - 1].any()


def test_arrangements_go_through_json():
    rng = np.random.default_rng(3)
    for picture in (draw("on"), scenes.sample_figure(rng), scenes.sample_face(rng)):
        assert Arrangement.from_dict(json.loads(json.dumps(picture.to_dict()))) == picture


def test_names_of_unnamed_relations_and_poses_are_never_said():
    rng = np.random.default_rng(0)
    for relation in scenes.UNNAMED_RELATIONS:
        for seed in range(10):
            text = re.sub(r" on an? \w+ background$", "", scene_caption(draw(relation, seed), rng))
            words = [*SAID.values(), *scenes.RELATIONS[:2], *scenes.RELATIONS[4:], "above", "against", "upside"]
            assert not any(f" {word} a " in text for word in words), text
            assert any(f" {joint} a" in text for joint in JOINTS)
    figure = scenes.sample_figure(rng, ("unnamed2",))
    assert not any(pose in scene_caption(figure) for pose in POSES)


@pytest.mark.parametrize("relation", scenes.RELATIONS)
def test_captions_name_the_relation_or_its_converse(relation):
    picture = draw(relation)
    said = SAID.get(relation, relation)
    first, second = (t.shape.family for t in picture.things[:2])
    text = scene_caption(picture)
    assert text.index(f" {first}") < text.index(f" {said} ") < text.rindex(f" {second}")


def test_scene_captions_fit_48_tokens_and_things_share_no_colour():
    tokenizer = make_tokenizer()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        picture = scenes.sample_arrangement(rng)
        assert len(tokenizer(scene_caption(picture, rng)).input_ids) <= 48
        first, second = (t.material for t in picture.things[:2])
        assert first.color not in (second.color, second.color2 if second.pattern != "plain" else "")


def test_poses_have_silhouettes_of_their_own():
    names = [*POSES, *(f"unnamed{i}" for i in range(len(UNNAMED_POSES)))]
    assert (len(POSES), len(UNNAMED_POSES), len(BODIES), len(EXPRESSIONS)) == (8, 4, 4, 5)
    base = scenes.sample_figure(np.random.default_rng(1), bodies=("person",))
    pictures = [base.with_thing(0, pose=scenes.pose_angles(name), yaw=0.4) for name in names]
    masks = render(pictures, 64).mask
    for i in range(len(names)):
        for j in range(i):
            assert (masks[i] & masks[j]).sum() < 0.85 * (masks[i] | masks[j]).sum(), (names[i], names[j])


def test_faces_differ_by_identity_and_by_expression():
    rng = np.random.default_rng(0)
    base = scenes.sample_face(rng)
    moods = [base.with_thing(0, face=face) for face in EXPRESSIONS.values()]
    others = [base.with_thing(0, shape=scenes.sample_face(rng).things[0].shape) for _ in range(5)]
    images = render(moods + others, 64).image.astype(float)
    for i in range(10):
        for j in range(i):
            assert np.abs(images[i] - images[j]).max() > 40
    assert scene_caption(base).split(" with ")[0].endswith(f"{base.names['expression']} face")


@pytest.mark.parametrize("kind", KINDS)
def test_edits_change_what_they_say_and_nothing_else(kind):
    edit = sample_edit(np.random.default_rng(7), (kind,))
    assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
    before, after = edit.before, edit.after
    out = render([before, after], 64)
    assert (out.image[0] != out.image[1]).any()
    if kind == "background":
        assert before.things == after.things
        assert (out.mask[0] == out.mask[1]).all()
        return
    assert before.scene == after.scene and before.floor == after.floor
    if kind in ("add", "remove"):
        assert abs(len(before.things) - len(after.things)) == 1
        return
    changed = [(a, b) for a, b in zip(before.things, after.things, strict=True) if a != b]
    assert len(changed) == 1
    a, b = changed[0]
    if kind in ("color", "pattern", "finish"):
        assert replace(a, material=b.material) == b and (out.mask[0] == out.mask[1]).all()
    else:
        assert a.material == b.material
    assert a.shape.family in edit.instruction


def test_held_out_families_can_be_left_out_of_scenes():
    rng = np.random.default_rng(0)
    allowed = tuple(f for f in world.FAMILIES if f not in ("heart", "house", "dog"))
    for relation in ("left of", "on", "leaning against"):
        for _ in range(10):
            picture = scenes.sample_arrangement(rng, (relation,), allowed)
            assert all(t.shape.family in allowed for t in picture.things)
