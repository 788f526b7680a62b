import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.tasks import CONCEPT, VALUES, WORDS
from escdiff.evaluation.report import units
from escdiff.mini.oracle import CLASSES
from escdiff.mini.world.world import sample_factors


def test_a_perfect_reading_makes_no_mistake(mug):
    got = scores.judge((*WORDS, *VALUES, "shape", "appearance"), scores.truth(mug), mug)
    assert got == dict.fromkeys((*WORDS, "shape", "appearance"), 1.0) | dict.fromkeys(VALUES, 0.0)


def test_scores_by_hand(mug):
    read = scores.truth(mug) | {"pattern": "dotted", "params": [0.5, 0.5, 0.9, 0.3], "gloss": [0.2], "rgb": [0, 0, 0]}
    assert scores.score("family", read, mug) == 1 and scores.score("pattern", read, mug) == 0
    assert scores.score("color", read, mug) == 1 and scores.score("appearance", read, mug) == 0
    assert scores.score("params", read, mug) == pytest.approx(0.15)
    true = replace(mug, shape=replace(mug.shape, params=(0.5, 0.5, 0.5, 0.7)))
    for params, share in (([0.5, 0.5, 0.9, 0.3], 0.5), ([0.01, 0.01, 0.99, 0.99], 0.25), ([0.39, 0.41, 0.61, 0.59], 1)):
        assert scores.score("degrees", read | {"params": params}, true) == share, params
    assert scores.score("gloss", read, mug) == pytest.approx(0.3)
    assert scores.score("delta_e", read, mug) > 30


def test_what_cannot_be_seen_is_not_judged(mug):
    dull = replace(mug, material=replace(mug.material, finish="matte", pattern="plain"))
    assert set(scores.judge(("color", "color2", "gloss"), scores.truth(dull), dull)) == {"color"}


def test_color_difference_is_ciede2000():
    assert scores.color_difference((0.3, 0.5, 0.7), (0.3, 0.5, 0.7)) == 0
    assert scores.color_difference((0, 0, 0), (1, 1, 1)) == pytest.approx(100, abs=0.01)


def test_psnr_in_decibels():
    black = torch.full((2, 3, 4, 4), -1.0)
    assert scores.psnr(black + 0.2, black) == pytest.approx([20, 20], abs=1e-3)  # 0.1 of the range: 20 dB
    assert math.isfinite(scores.psnr(black, black)[0])


def test_the_oracle_is_read_in_words(oracle):
    readings = scores.read(oracle, torch.zeros(3, 3, 128, 128), batch_size=2)
    assert len(readings) == 3 and set(readings[0]) == {*CLASSES, "params", "rgb", "rgb2", "gloss", "scale", "angle"}
    assert readings[0]["family"] in CLASSES["family"] and len(readings[0]["rgb"]) == 3


def test_shuffled_expectations_score_lower():
    rng = np.random.default_rng(0)
    drawn = [sample_factors(rng) for _ in range(60)]
    for name in CONCEPT:
        right = [scores.score(name, scores.truth(f), f) for f in drawn]
        wrong = [scores.score(name, scores.truth(f), g) for f, g in zip(drawn, drawn[1:] + drawn[:1], strict=True)]
        right, wrong = ([v for v in values if v is not None] for values in (right, wrong))
        better = np.mean(right) - np.mean(wrong)
        assert better < -0.1 if name in units.ERRORS else better > 0.5, name
