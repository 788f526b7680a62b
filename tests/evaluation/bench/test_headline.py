"""The headline and the figures that no single picture has."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from escdiff.evaluation.bench import headline, scores
from escdiff.evaluation.bench.agreement import agreements, correlation, r_squared
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.evaluation.report import units
from escdiff.mini.world.world import sample_factors


def records(task, values, score="shape_id"):
    return [Record(r, {}, {score: v}) for r, v in zip(TASKS[task].draw(0, len(values)), values, strict=True)]


def metrics(known):
    values = {f"{task}/{n}": [r.values[n] for r in rows] for task, rows in known.items() for n in rows[0].values}
    return {key: units.summarise(key.split("/")[1], found) for key, found in values.items()}


def test_a_task_leads_full_words_by_its_paired_difference():
    known = {"both": records("both", [1.0] * 20), "words_full": records("words_full", [0.0, 1.0] * 10)}
    (lead,) = headline.leads(known)
    assert (lead.task, lead.score, lead.words) == ("both", "shape_id", "words_full")
    assert lead.difference.mean == pytest.approx(0.5) and lead.difference.low > 0.2 and lead.holm < 0.01
    shown, *leak = headline.tables(known, metrics(known))
    assert not leak and [row[0] for row in shown.rows] == ["both", "words_full", "chance"]
    assert shown.rows[0][1].startswith("100.0 %") and shown.rows[0][3].startswith("+50.0 %")
    assert set(headline.to_json(known)) == {"both/shape_id"}


def test_equals_lead_by_nothing():
    known = {name: records(name, [0.0, 1.0] * 10) for name in ("both", "words_full")}
    (lead,) = headline.leads(known)
    assert lead.difference.mean == 0 and lead.holm == 1


def test_cells_of_the_swap_matrix_are_not_independent():
    values = [1.0] * 4 + [0.0] * 12  # one row of four: one shape
    known = {"swap": records("swap", values), "swap_words": records("swap_words", [0.0] * 16)}
    (lead,) = headline.leads(known)
    assert lead.difference.n == 4


def test_a_leak_is_told_above_chance():
    known = {"shape": records("shape", [1.0, 0.0] * 10, "leak_material_id")}
    (table,) = headline.tables(known, metrics(known))
    assert table.rows[0][0] == "shape/leak_material_id" and table.rows[0][3] == "+37.5 %"


def test_without_identities_there_is_no_headline():
    known = {"both": records("both", [1.0], "family")}
    assert headline.tables(known, metrics(known)) == [] and headline.to_json(known) == {}


def test_agreement_by_hand():
    true = np.array([[0.0], [0.5], [1.0]])
    assert r_squared(true, true) == 1 and r_squared(true, np.full_like(true, 0.5)) == 0
    assert r_squared(true, true + 0.5) == pytest.approx(1 - 0.75 / 0.5)
    assert correlation(true, 3 * true - 1) == pytest.approx(1) and correlation(true, -true) == pytest.approx(-1)


def test_a_perfect_reading_agrees_and_a_constant_one_does_not():
    rng = np.random.default_rng(0)
    drawn = [sample_factors(rng) for _ in range(60)]
    right = agreements([(f, scores.truth(f)) for f in drawn])
    assert set(right) == {"params_r2", "gloss_r", "scale_r", "angle_r"}
    assert all(found["mean"] == pytest.approx(1) == found["low"] for found in right.values())
    assert right["params_r2"]["n"] == 60 and right["gloss_r"]["n"] < 60  # the matte ones show none
    blind = agreements([(f, scores.truth(f) | {"params": [0.5] * 4, "gloss": [0.5]}) for f in drawn])
    assert abs(blind["params_r2"]["mean"]) < 0.1 and "gloss_r" not in blind
    noisy = agreements([(f, scores.truth(replace(f, shape=g.shape))) for f, g in itertools.pairwise(drawn)])
    assert noisy["params_r2"]["low"] <= noisy["params_r2"]["mean"] <= noisy["params_r2"]["high"] < 0.1
