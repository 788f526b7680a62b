import numpy as np
import pytest
import torch

from escdiff.mini.data.chunks import soften
from escdiff.mini.data.lineups import (
    INSTANCES,
    PICTURES,
    SEEN_VIEWS,
    VIEWS,
    LineUps,
    build_lineups,
    differ,
    lineup,
    shows,
)
from escdiff.mini.oracle import CLASSES
from escdiff.mini.world.world import THING


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


def test_batches_hold_pairs_of_lineups_and_others_with_what_each_picture_shows(folder):
    data = LineUps(folder)
    visits = [(0, 1), (5, 0)]
    pixels, labels = data.__getitems__(visits)
    rows = np.concatenate([data.rows(*visit) for visit in visits])
    assert pixels.shape == (2 * PICTURES, 3, 16, 16) and -1 <= pixels.min() < pixels.max() <= 1
    assert np.abs(pixels.numpy() - data.pixels[0][rows].transpose(0, 3, 1, 2) / 127.5 + 1).max() < 1e-6
    everything = [factors for number in range(len(data)) for factors in lineup(3, number)]
    factors = [everything[row] for row in rows]
    assert [CLASSES["family"][i] for i in labels["family"]] == [f.shape.family for f in factors]
    assert labels["shows_params"].tolist() == [f.shape.family != THING for f in factors]
    assert labels["shows_rgb2"].tolist() == [shows("rgb2", f) for f in factors]
    assert torch.allclose(labels["params"], torch.tensor([f.shape.params for f in factors]))
    pairs = SEEN_VIEWS * INSTANCES
    assert labels["material_id"][:pairs].tolist() == np.repeat(range(4, 8), SEEN_VIEWS).tolist()
    assert (labels["shape_id"][:pairs] == -1).all()
    assert len(set(rows[:pairs])) == pairs and len({factors[i].shape for i in range(0, pairs, SEEN_VIEWS)}) == INSTANCES
    assert set(rows[pairs:PICTURES]) != set(rows[PICTURES + pairs :]), "others come from anywhere"
    assert (data.rows(0, 1) == data.rows(0, 1)).all() and (data.rows(1, 1) != data.rows(0, 1)).any()


def test_what_is_rendered_is_kept_and_what_is_missing_is_made_alike(folder):
    first = folder / "chunk-00000.npy"
    before = first.read_bytes()
    build_lineups(folder, 4, seed=3, size=16)
    assert first.read_bytes() == before
    (folder / "chunk-00000.json").unlink()
    build_lineups(folder, 4, seed=3, size=16)
    assert first.read_bytes() == before


def test_a_share_goes_through_the_vae(folder):
    sharp, _ = LineUps(folder).__getitems__([(0, 2)])
    soften(folder, lambda pixels: pixels * 0.5)
    soft, _ = LineUps(folder).__getitems__([(0, 2)])
    assert torch.allclose(soft, sharp * 0.5, atol=0.01)
