"""Masks of cluttered references: given, from transparency, from a model, or by what differs from the rim."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.cli.masks import read_masks, salient
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import sample_factors
from escdiff.support.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    """A disc on a gradient: opaque, transparent around it, and its mask."""
    y, x = np.mgrid[:64, :96]
    disc = (y - 32) ** 2 + (x - 48) ** 2 < 400
    rgb = np.stack([60 + x, 60 + x, 80 + x], -1).astype(np.uint8)
    rgb[disc] = (200, 40, 30)
    alpha = np.where(disc, 255, 0).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "plain.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "cut.png")
    Image.fromarray(alpha).save(tmp_path / "mask.png")
    Image.fromarray(alpha * 0).save(tmp_path / "black.png")
    Image.fromarray(np.full((64, 96, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    return tmp_path


def test_every_source_finds_the_same_disc(pictures):
    given = read_masks([str(pictures / "plain.png")], str(pictures / "mask.png"), None, 32)[str(pictures / "plain.png")]
    assert given.shape == (1, 32, 32) and given[0, 16, 16] == 1 and given[0, 0, 0] == 0
    both = [str(pictures / name) for name in ("plain.png", "cut.png")]
    found = read_masks(both, "auto", None, 32)
    assert torch.equal(found[both[1]], given)
    assert (found[both[0]] - given).abs().mean() < 0.02
    assert read_masks(both, None, None, 32) == {}


def test_still_life_objects_are_found():
    rendered = render([sample_factors(np.random.default_rng(seed)) for seed in range(8)], 128)
    overlaps = []
    for image, mask in zip(rendered.image, rendered.mask, strict=True):
        found = salient(Image.fromarray(image))
        overlaps.append((found & mask).sum() / (found | mask).sum())
    assert np.mean(overlaps) > 0.8


def test_mistakes_and_pictures_without_an_object(pictures, caplog):
    plain, grey = (str(pictures / name) for name in ("plain.png", "grey.png"))
    with caplog.at_level(logging.WARNING):
        assert read_masks([grey], "auto", None, 32) == {}
    assert "no clear object" in caplog.text
    with pytest.raises(UserError, match="with 2 pictures"):
        read_masks([plain, grey], str(pictures / "mask.png"), None, 32)
    with pytest.raises(UserError, match="all black"):
        read_masks([plain], str(pictures / "black.png"), None, 32)
    Image.new("L", (9, 9), 255).save(pictures / "small.png")
    with pytest.raises(UserError, match="expected the same"):
        read_masks([plain], str(pictures / "small.png"), None, 32)
