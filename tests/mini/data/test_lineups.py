from dataclasses import replace

import numpy as np
import pytest
import torch

from escdiff.mini.data import lineups
from escdiff.mini.data.chunks import soften
from escdiff.mini.data.lineups import (
    INSTANCES,
    PICTURES,
    VIEWS,
    LineUps,
    build_lineups,
    differ,
    lineup,
    namesakes,
    shows,
    tellable,
)
from escdiff.mini.oracle import CLASSES
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import THING, Factors, sample_material, sample_scene, sample_shape


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineups, "PER_CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineups")
    build_lineups(folder, 4, seed=3, size=16)
    return folder


def test_a_lineup_differs_in_its_instances_alone():
    for number in range(12):
        kind = ("shape", "material")[number % 2]
        factors = lineup(7, number)
        instances = [getattr(f, kind) for f in factors]
        assert len(factors) == PICTURES and factors == lineup(7, number)
        assert [len(set(instances[i : i + VIEWS])) for i in range(0, PICTURES, VIEWS)] == [1] * INSTANCES
        assert len(set(instances)) == INSTANCES and all(differ(instances[0], other, 0.1) for other in instances[VIEWS:])
        names = ("family",) if kind == "shape" else ("pattern", "color", "color2", "finish")
        assert len({tuple(getattr(one, name) for name in names) for one in instances}) == 1
        others = {getattr(f, "material" if kind == "shape" else "shape") for f in factors}
        assert len(others) == PICTURES


def test_namesakes_of_a_material_differ_in_what_shows():
    """Rendered on one thing in one scene; white and black have no shades, and where nothing shows all are alike."""
    rng, seen = np.random.default_rng(5), {True: 0, False: 0}
    plain = [replace(sample_material(rng, ("plain",)), color=color) for color in ("white", "black", "white", "red")]
    for material in [*plain, *(sample_material(rng) for _ in range(16))]:
        seen[tellable(material)] += 1
        namesake = namesakes([material], 1, rng)[0]
        if tellable(material):
            shape, scene = sample_shape(rng, ("cube",)), sample_scene(rng, material)
            alike = replace(namesake, jitter=material.jitter, jitter2=material.jitter2)
            first, second = render([Factors(shape, m, scene) for m in (material, alike)], 64).image.astype(int)
            assert np.abs(first - second).max() > 8, (material, namesake)
        else:
            assert (material.color, material.finish) in (("white", "matte"), ("black", "matte"))
    assert min(seen.values()) > 0


def test_batches_hold_lineups_and_single_pictures_with_what_each_shows(folder):
    data = LineUps(folder)
    everything = [factors for number in range(len(data)) for factors in lineup(3, number)]
    visits = [(0, 1), (0, 0), (0, 3), (0, 2)]
    pixels, labels = data.__getitems__(visits)
    assert pixels.shape == (4 * PICTURES, 3, 16, 16) and -1 <= pixels.min() < pixels.max() <= 1
    assert torch.equal(pixels, data.__getitems__(visits)[0])
    stored = torch.from_numpy(np.array(data.pixels[0][: len(everything)])).permute(0, 3, 1, 2) / 127.5 - 1
    rows = [int((stored - picture).abs().amax((1, 2, 3)).argmin()) for picture in pixels]
    factors = [everything[row] for row in rows]
    assert [CLASSES["family"][i] for i in labels["family"]] == [f.shape.family for f in factors]
    assert labels["shows_params"].tolist() == [f.shape.family != THING for f in factors]
    assert labels["shows_rgb2"].tolist() == [shows("rgb2", f) for f in factors]
    assert torch.allclose(labels["params"], torch.tensor([f.shape.params for f in factors]))
    half = 2 * PICTURES
    assert rows[:half] == [*range(PICTURES, 2 * PICTURES), *range(PICTURES)]
    assert (labels["shape_id"][:PICTURES] == -1).all() and (labels["material_id"][PICTURES:] == -1).all()
    assert labels["material_id"][:PICTURES].tolist() == np.repeat(range(4, 8), VIEWS).tolist()
    assert len({row // PICTURES for row in rows[half:]}) == len(data) and (labels["shape_id"][half:] == -1).all()
    _, alone = data.__getitems__([(0, 1)])
    assert (alone["shape_id"] == -1).all()  # less than two line-ups have no half


def test_what_is_rendered_is_kept_and_what_is_missing_is_made_alike(folder):
    first = folder / "chunk-00000.npy"
    before = first.read_bytes()
    build_lineups(folder, 4, seed=3, size=16)
    assert first.read_bytes() == before
    (folder / "chunk-00000.json").unlink()
    build_lineups(folder, 4, seed=3, size=16)
    assert first.read_bytes() == before


def test_a_share_goes_through_the_vae(folder):
    sharp, _ = LineUps(folder).pictures(np.arange(8))
    soften(folder, lambda pixels: pixels * 0.5)
    soft, _ = LineUps(folder).pictures(np.arange(8))
    assert torch.allclose(soft, sharp * 0.5, atol=0.01)
