import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from escdiff.evaluation.bench.identity import CHANCE, OTHERS, Gallery, identify, lineup, views
from escdiff.evaluation.bench.instances import STREAM, Request
from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.bench.requests import nameless
from escdiff.mini.data.lineups import differ
from escdiff.mini.world import world
from escdiff.mini.world.world import Factors


class BySight:
    """Knows a picture again by its bytes, and tells nothing else."""

    config = SimpleNamespace(embeddings={"shape_id": 64, "material_id": 64})

    def embed(self, name, pixels):
        codes = [hashlib.sha256(picture.numpy().tobytes()).digest()[:8] for picture in pixels]
        rows = [np.random.default_rng(int.from_bytes(code, "little")).normal(size=64) for code in codes]
        return torch.nn.functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


class Blind(BySight):
    """Sees the same in every picture."""

    def embed(self, name, pixels):
        return torch.ones(len(pixels), 64) / 8


@pytest.fixture(scope="module")
def request_of_a_mug():
    rng = np.random.default_rng(4)
    material = world.sample_material(rng, ("striped",))
    mug = Factors(world.sample_shape(rng, ("mug",)), material, world.sample_scene(rng, material))
    return Request("a photo of <concept>", mug, mug, mug)


def test_a_lineup_holds_the_instance_and_seven_of_its_names(request_of_a_mug):
    mug = request_of_a_mug.expected
    shapes, materials = lineup(mug.shape), lineup(mug.material)
    assert len(shapes) == len(materials) == 1 + OTHERS == 1 / CHANCE
    assert shapes[0] == mug.shape and {s.family for s in shapes} == {"mug"} and lineup(mug.shape) == shapes
    names = {(m.pattern, m.color, m.color2, m.finish) for m in materials}
    assert names == {("striped", mug.material.color, mug.material.color2, mug.material.finish)}
    assert all(differ(mug.material, other) for other in materials[1:])


def test_the_instance_is_found_and_a_namesake_is_not(request_of_a_mug):
    rng = np.random.default_rng((0, STREAM + 501))  # the portraits' own
    shown = [draw(views(one, rng))[0] for one in lineup(request_of_a_mug.expected.shape)[:2]]
    asked = [request_of_a_mug, request_of_a_mug]
    assert identify(Gallery(BySight()), ("shape_id",), asked, shown) == [{"shape_id": 1.0}, {"shape_id": 0.0}]


def test_a_judge_that_sees_nothing_finds_nothing(request_of_a_mug):
    names, gallery = ("shape_id", "leak_material_id"), Gallery(Blind())
    found = identify(gallery, names, [request_of_a_mug], draw([request_of_a_mug.expected]))
    assert found == [dict.fromkeys(names, 0.0)]
    (known,) = gallery.portraits([request_of_a_mug.expected.shape])
    assert known.shape == (1 + OTHERS, 64)


def test_an_oracle_without_identities_is_not_asked(oracle, request_of_a_mug):
    assert identify(Gallery(oracle), ("shape_id",), [request_of_a_mug], []) == [{}]


def test_a_line_up_is_shown_once_and_alike_among_others(request_of_a_mug, monkeypatch):
    rng, gallery = np.random.default_rng(1), Gallery(BySight())
    shapes = [world.sample_shape(rng, ("ball",)), request_of_a_mug.expected.shape]
    _, among = gallery.portraits(shapes)
    monkeypatch.setattr("escdiff.evaluation.bench.identity.draw", None)  # nothing is rendered again
    assert gallery.portraits(shapes[1:])[0] is among


@pytest.mark.slow
def test_where_only_the_nameless_count_named_instances_are_not_looked_for(request_of_a_mug):
    asked = [*nameless(0, 2), request_of_a_mug]  # a thing, a texture, neither
    names, shown = ("shape_id", "material_id"), draw([request.expected for request in asked])
    gallery = Gallery(Blind())
    found = identify(gallery, names, asked, shown, nameless=True)
    assert [set(values) for values in found] == [{"shape_id"}, {"material_id"}, set()] and len(gallery.vectors) == 2
