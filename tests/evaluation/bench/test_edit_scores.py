"""Scores of exact edits against plain lines, and at their bounds."""

import math

import numpy as np
import pytest
import torch

from escdiff.evaluation.bench.scenes.edits import CHANGED, DONE, score_edits


def pictures(seed=0, count=3, side=12):
    """Pairs that differ in a square, and results near to them, each (B, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(count, 3, side, side, generator=generator) * 2 - 1
    after = before.clone()
    after[:, :, 3:9, 3:9] = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    results = after + 0.2 * torch.randn(after.shape, generator=generator)
    return results, before, after


def plain(result, before, after, other):
    """The same scores of one picture, in NumPy."""
    result, before, after, other = ((pixels.numpy() + 1) / 2 for pixels in (result, before, after, other))
    changed = np.broadcast_to((np.abs(after - before).max(0) > CHANGED)[None], after.shape)
    whole, rest, chance = (np.mean((x - after)[changed] ** 2) for x in (before, result, other))
    elsewhere = np.mean((result - after)[~changed] ** 2)
    return {
        "done": float(rest <= DONE * whole),
        "chance_done": float(chance <= DONE * whole),
        "kept": -10 * math.log10(elsewhere),
    }


def test_scores_are_those_of_plain_lines():
    results, before, after = pictures()
    found = score_edits(results, before, after)
    for i, scores in enumerate(found):
        expected = plain(results[i], before[i], after[i], results[(i + 1) % len(results)])
        assert scores["done"] == expected["done"] and scores["chance_done"] == expected["chance_done"]
        assert scores["kept"] == pytest.approx(expected["kept"], abs=1e-3)


@pytest.mark.parametrize(("share", "done"), [(0.45, 1.0), (0.55, 0.0)])
def test_an_edit_is_done_where_a_quarter_of_its_square_is_left(share, done):
    """A result that lies `share` of the way back to the picture before leaves share squared of the change."""
    _, before, after = pictures(count=1)
    assert score_edits(after + share * (before - after), before, after)[0]["done"] == done


def test_a_copy_of_the_picture_before_keeps_all_and_has_done_nothing():
    _, before, after = pictures(count=2)
    for scores in score_edits(before, before, after):
        assert scores["done"] == 0 and scores["kept"] == pytest.approx(100)
    for scores in score_edits(after, before, after):
        assert scores["done"] == 1 and scores["kept"] == pytest.approx(100)


def test_the_chance_is_that_of_the_next_picture():
    """The results of a batch, moved by one: each is as good by chance as the true picture is for its neighbour."""
    _, before, after = pictures(count=3)
    assert [scores["chance_done"] for scores in score_edits(after.roll(1, 0), before, after)] == [1.0] * 3
    assert [scores["chance_done"] for scores in score_edits(after, before, after)] == [0.0] * 3


def test_what_lies_outside_of_the_edit_cannot_undo_it():
    _, before, after = pictures(count=1)
    spoiled = after.clone()
    spoiled[:, :, 0] = -spoiled[:, :, 0]
    scores = score_edits(spoiled, before, after)[0]
    assert scores["done"] == 1 and scores["kept"] < 30
