from dataclasses import replace

import numpy as np
import pytest
import torch

from escdiff.mini.world.geometry import shapes
from escdiff.mini.world.rendering import materials
from escdiff.mini.world.rendering.render import CAMERA, render
from escdiff.mini.world.world import (
    BACKGROUNDS,
    COLORS,
    FAMILIES,
    PATTERNS,
    SCALED,
    SCALES,
    Factors,
    Material,
    Scene,
    Shape,
)

SCENE = Scene("beige", 0.4, 0.0, 0.3, 0.35, 1.0, 0.0, 0.0)
PLAIN = Material("red", "white", "plain", 0.5, 0.1, "matte", 0.5, (0.0,) * 3, (0.0,) * 3, 5)


def picture(family="mug", params=(0.5,) * 4, scene=SCENE, **material) -> Factors:
    return Factors(Shape(family, params), replace(PLAIN, **material), scene)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fits_the_frame_and_varies_with_its_parameters(family):
    corners = [(0.0,) * 4, (1.0,) * 4, (1.0, 0.0, 1.0, 0.0)]
    out = render([picture(family, params) for params in corners], 64)
    share = out.mask.mean((1, 2))
    assert (share > 0.03).all() and (share < 0.6).all()
    assert not out.mask[:, 0].any() and not out.mask[:, -1].any()
    assert (out.mask[0] != out.mask[1]).mean() > 0.005


@pytest.mark.parametrize("family", FAMILIES)
def test_distances_are_lower_bounds_near_enough_for_the_tracer(family):
    """Along any segment a distance may not fall faster than the segment is long (times the tracer's caution)."""
    generator = torch.Generator().manual_seed(0)
    params = torch.rand(4, 4000, generator=generator)
    start = torch.rand(3, 4000, generator=generator) * 2.6 - 1.3
    step = torch.randn(3, 4000, generator=generator)
    step = 0.02 * step / step.norm(dim=0)
    before, after = shapes.SDF[family](*start, *params), shapes.SDF[family](*(start + step), *params)
    slope = (after - before).abs() / 0.02
    outside = (before > 0.02) & (after > 0.02)
    assert slope[outside].quantile(0.99) < 1.25


def test_patterns_differ_and_plain_shows_one_color():
    p = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    n = torch.nn.functional.normalize(p, dim=-1)
    full = [torch.full((500,), v) for v in (0.5, 0.1, 7.0)]
    weights = {name: materials.weight(name, p, n, *full) for name in PATTERNS}
    assert weights["plain"].abs().max() == 0
    for i, a in enumerate(PATTERNS):
        assert weights[a].min() >= 0 and weights[a].max() <= 1
        for b in PATTERNS[i + 1 :]:
            assert (weights[a] - weights[b]).abs().mean() > 0.02, (a, b)
    with pytest.raises(ValueError, match="unknown pattern 'tartan'"):
        materials.weight("tartan", p, n, *full)


def test_a_red_matte_ball_on_white_is_red_where_the_mask_is():
    out = render([picture("ball", scene=replace(SCENE, background="white"))])
    inside = out.image[0][out.mask[0]].mean(0)
    outside = out.image[0][~out.mask[0]].mean(0)
    assert inside[0] > 2.5 * inside[1] and inside[0] > 2.5 * inside[2]
    assert outside.min() > 190


def test_depth_is_the_distance_from_the_camera_on_the_object_only():
    out = render([picture("ball")])
    on = out.depth[0][out.mask[0]]
    assert CAMERA - 1.3 < on.min() < on.max() < CAMERA + 0.5
    assert (out.depth[0][~out.mask[0]] == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"material": replace(PLAIN, color="blue")},
        {"material": replace(PLAIN, pattern="dotted")},
        {"material": replace(PLAIN, finish="metallic")},
        {"scene": replace(SCENE, background="sky")},
        {"scene": replace(SCENE, light=-0.9)},
    ],
)
def test_counterfactuals_keep_the_silhouette(change):
    before, after = picture(), replace(picture(), **change)
    out = render([before, after])
    assert (out.mask[0] == out.mask[1]).all()
    assert (out.image[0] != out.image[1]).any()


def test_a_new_pose_keeps_the_material_and_moves_the_silhouette():
    out = render([picture(), picture(scene=replace(SCENE, yaw=-0.8))])
    assert (out.mask[0] != out.mask[1]).mean() > 0.01


def test_every_color_and_background_renders_as_named():
    balls = [picture("ball", color=color) for color in COLORS]
    walls = [picture("ball", scene=replace(SCENE, background=name)) for name in BACKGROUNDS]
    out = render(balls + walls, 32)
    means = np.array([image[mask].mean(0) for image, mask in zip(out.image[:12], out.mask[:12], strict=True)])
    assert len(np.unique(means.round(-1), axis=0)) == 12
    corners = out.image[12:, 0, 0].astype(float)
    assert len(np.unique(corners.round(-1), axis=0)) == 8


def test_the_same_batch_gives_the_same_bytes_and_other_batches_differ_by_rounding_at_most():
    batch = [picture(f, color=c, pattern=p) for f, c, p in zip(FAMILIES, COLORS, PATTERNS, strict=False)]
    first, again = render(batch, 64), render(batch, 64)
    assert (first.image == again.image).all()
    alone = render(batch[3:4], 64)
    assert np.abs(alone.image[0].astype(int) - first.image[3]).max() <= 1


@pytest.mark.parametrize("pattern", SCALED)
def test_a_finer_pattern_has_more_edges(pattern):
    """On the front of a ball, for five seeds: what words call fine and broad can be told at a glance."""
    x, y = torch.meshgrid(*[torch.linspace(-0.7, 0.7, 120)] * 2, indexing="xy")
    points = torch.stack([x, y, (1 - x.square() - y.square()).sqrt()], -1).flatten(0, 1)

    def edges(scale):
        total = 0.0
        for seed in range(5):
            same = torch.full((len(points),), 0.0)
            share = materials.weight(pattern, points, points, same + scale, same, same + seed).view(x.shape)
            total += float(share.diff(dim=0).abs().sum() + share.diff(dim=1).abs().sum())
        return total

    fine, broad = SCALES
    assert edges(fine) > 1.4 * edges(broad)
