"""Validation: logged at its steps, always of the same samples and noise, and without a trace in the training."""

import json

import pytest
from toy_training import assert_same, last

from escdiff.training.loop import run
from escdiff.training.loop.recipe import RECIPES


@pytest.fixture
def validated(config, monkeypatch):
    monkeypatch.setitem(RECIPES, "toy", "toy_training:build_validated")
    config.trainer.val_steps, config.trainer.val_batches, config.trainer.max_steps = 2, 8, 5
    return config


def lines(config):
    return [json.loads(line) for line in run.RunFolder(config.run_dir).metrics.read_text(encoding="utf-8").splitlines()]


def test_it_is_logged_at_its_steps_and_at_the_last(validated):
    run.train(validated)
    found = [line for line in lines(validated) if "val/loss" in line]
    assert [line["step"] for line in found] == [1, 3, 4]  # counted from 0
    for line in found:
        assert 0 < line["val/share"] < 1
        assert "val/loss_t500" not in line  # nothing was there
        bands = [line[f"val/loss_t{band}"] for band in (0, 250, 750)]
        assert 2 * bands[0] + bands[1] + bands[2] == pytest.approx(
            4 * line["val/loss"]
        )  # two samples of the first band


def test_it_asks_the_averaged_weights_with_the_same_random_numbers(validated):
    validated.optim.ema, validated.trainer.val_steps = 0.9, 5
    run.train(validated)
    shadow = next(state for name, state in last(validated)["callbacks"].items() if name.startswith("Average"))
    weight = shadow["shadow_params"][0][0, 0].item()
    first = lines(validated)[-1]["val/loss"] - 49 * weight
    assert 0 < first < 1
    validated.seed, validated.run_dir = 99, validated.run_dir + "2"
    run.train(validated)
    shadow = next(state for name, state in last(validated)["callbacks"].items() if name.startswith("Average"))
    second = lines(validated)[-1]["val/loss"] - 49 * shadow["shadow_params"][0][0, 0].item()
    assert first == pytest.approx(second, abs=1e-4)


def test_it_leaves_no_trace_in_the_training(validated):
    run.train(validated)
    watched = last(validated)
    validated.trainer.val_steps, validated.run_dir = 0, validated.run_dir + "2"
    run.train(validated)
    assert not [line for line in lines(validated) if "val/loss" in line]
    assert_same(watched["state_dict"], last(validated)["state_dict"])
    assert_same(watched["optimizer_states"], last(validated)["optimizer_states"])


def test_data_and_modules_without_it_are_left_alone(config):
    config.trainer.val_steps = 2
    run.train(config)
    assert not [line for line in lines(config) if "val/loss" in line]
