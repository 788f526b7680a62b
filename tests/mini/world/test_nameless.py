from dataclasses import replace

import numpy as np
import pytest
import torch

from escdiff.mini.world import world
from escdiff.mini.world.geometry import nameless
from escdiff.mini.world.rendering.render import render


@pytest.fixture(scope="module")
def things() -> list[world.Factors]:
    rng = np.random.default_rng(5)
    base = world.sample_factors(rng)
    base = replace(base, scene=replace(base.scene, dx=0.0, dy=0.0, zoom=1.0))
    return [replace(base, shape=world.sample_thing(rng)) for _ in range(12)]


def test_things_fit_the_frame_and_differ(things):
    out = render(things, 64)
    share = out.mask.mean((1, 2))
    assert (share > 0.03).all() and (share < 0.6).all()
    assert not out.mask[:, 0].any() and not out.mask[:, :, -1].any()
    for i in range(len(things)):
        for j in range(i):
            both = (out.mask[i] & out.mask[j]).sum() / (out.mask[i] | out.mask[j]).sum()
            assert both < 0.9


@pytest.mark.slow
def test_a_thing_is_one_piece(things):
    for factors in things:
        solid = nameless.thing(factors.shape.seed)
        p = torch.rand(3, 60_000, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
        inside = p[:, solid(*p) < 0].T
        group = torch.zeros(len(inside), dtype=torch.bool)
        group[0] = True
        for _ in range(60):  # grows from one point to its neighbours
            near = torch.cdist(inside, inside[group]).amin(1) < 0.12
            if (near == group).all():
                break
            group = near
        assert group.float().mean() > 0.97


def test_distances_of_things_are_bounds_near_enough_for_the_tracer(things):
    for factors in things[:6]:
        solid = nameless.thing(factors.shape.seed)
        generator = torch.Generator().manual_seed(1)
        start = torch.rand(3, 4000, generator=generator) * 2.6 - 1.3
        step = torch.randn(3, 4000, generator=generator)
        step = 0.02 * step / step.norm(dim=0)
        before, after = solid(*start), solid(*(start + step))
        outside = (before > 0.02) & (after > 0.02)
        assert ((after - before).abs() / 0.02)[outside].quantile(0.99) < 1.25


def test_textures_show_both_colours_and_differ():
    p = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    second = [nameless.texture(seed)(p)[0] for seed in range(24)]
    shares = torch.stack(second).mean(1)
    assert (shares > 0.08).all() and (shares < 0.92).all()
    for i in range(len(second)):
        for j in range(i):
            assert (second[i] - second[j]).abs().mean() > 0.1


def test_a_seed_gives_the_same_thing_and_texture_again():
    p = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nameless.Thing(9)(*p.T), nameless.Thing(9)(*p.T))
    assert torch.equal(nameless.Texture(9)(p)[0], nameless.Texture(9)(p)[0])
