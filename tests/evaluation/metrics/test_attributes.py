import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from escdiff.encoder import load_vision
from escdiff.evaluation.metrics.attributes import (
    GramDistance,
    LabDistance,
    MaskIoU,
    gram_distance,
    lab_distance,
    mask_iou,
    plain_mask,
)
from escdiff.mini.world.rendering.render import render
from escdiff.mini.world.world import sample_factors


def disc(size=128, radius=30, centre=(64, 64)):
    y, x = np.mgrid[:size, :size]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def box(height, width, top=40, left=40, size=128):
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def plain(color):
    """A picture of one Lab colour."""
    rgb = np.round(255 * lab2rgb(np.array(color, float))).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(rgb, (32, 32, 3)).copy())


def lab(picture):
    return rgb2lab(np.asarray(picture))[0, 0]


def test_iou_forgets_place_and_size():
    assert mask_iou(disc(), disc()) == 1
    assert mask_iou(disc(), disc(radius=15, centre=(30, 90))) > 0.95
    assert mask_iou(box(20, 60), box(30, 90, 5, 5)) > 0.93


def test_iou_of_a_square_and_a_disc_by_hand():
    """Of equal area 1: the disc's radius is 0.564, its four segments beyond the square's sides have 0.0226 each."""
    radius = 1 / math.sqrt(math.pi)
    angle = 2 * math.acos(0.5 / radius)
    both = 1 - 4 * radius**2 / 2 * (angle - math.sin(angle))
    assert mask_iou(disc(), box(60, 60)) == pytest.approx(both / (2 - both), abs=0.02)


def test_iou_of_two_bars_by_hand():
    """1 x 4 lying and standing share one square of seven."""
    assert mask_iou(box(20, 80, 50, 20), box(80, 20, 20, 50)) == pytest.approx(1 / 7, abs=0.02)


def test_iou_of_nothing_is_zero():
    assert mask_iou(disc(), np.zeros((64, 64), bool)) == 0


def test_colours_by_hand():
    whole, grey, other = np.ones((32, 32), bool), plain((50, 0, 0)), plain((60, 20, 0))
    apart = np.linalg.norm(lab(grey) - lab(other))
    assert lab_distance(grey, whole, other, whole) == pytest.approx(apart, abs=1e-6)
    assert lab_distance(grey, whole, grey, whole) == pytest.approx(0, abs=1e-9)
    half = Image.fromarray(np.concatenate([np.asarray(grey)[:, :16], np.asarray(other)[:, 16:]], 1))
    assert lab_distance(half, whole, grey, whole) == pytest.approx(apart / 2, abs=1e-6)  # half has to move
    left = np.zeros((32, 32), bool)
    left[:, :16] = True
    assert lab_distance(half, left, grey, whole) == pytest.approx(0, abs=1e-9)  # what is outside does not count
    assert math.isnan(lab_distance(half, ~whole, grey, whole))


def test_gram_by_hand():
    """Gram matrices diag(1, 0) and diag(0, 1): sqrt(2) apart, norms 1 and 1."""
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert gram_distance(one, other) == pytest.approx(math.sqrt(2) / 2)
    assert gram_distance(one, one) == 0 and gram_distance(torch.cat([one, other]), torch.cat([other, one])) == 0
    assert math.isnan(gram_distance(one, one[:0]))


def test_renders_are_told_apart_and_masks_are_found():
    """Against the renderer's own masks; the same instance is nearest to itself on every metric."""
    rng = np.random.default_rng(3)
    shown = render([sample_factors(rng) for _ in range(6)], 128)
    pictures, masks = [Image.fromarray(p) for p in shown.image], list(shown.mask)
    found = [plain_mask(picture) for picture in pictures]
    overlap = [(a & b).sum() / (a | b).sum() for a, b in zip(found, masks, strict=True)]
    assert np.median(overlap) > 0.8
    turned = [pictures[1:] + pictures[:1], masks[1:] + masks[:1]]
    gram = GramDistance(load_vision("mini"), (0, 1))
    for metric in (LabDistance(), gram):
        same = metric.score(pictures, masks, pictures, masks)
        shuffled = metric.score(pictures, masks, *turned)
        assert same.abs().max() < 1e-4 and (shuffled > 0.01).all()
    assert MaskIoU().score(masks, masks).tolist() == [1.0] * 6
    assert MaskIoU().score(masks, turned[1]).mean() < 0.9
    metric = MaskIoU()
    metric.update(masks, masks)
    assert metric.compute() == 1


def test_a_plain_picture_has_no_object():
    assert not plain_mask(plain((50, 0, 0))).any()
