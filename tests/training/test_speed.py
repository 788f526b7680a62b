"""Figures of speed: what is counted, and that counting changes nothing."""

import json
import time

import pytest
import torch
import toy_training
from toy_training import assert_same, last

from escdiff.training import run, speed


def lines(config):
    return [json.loads(line) for line in run.RunFolder(config.run_dir).metrics.read_text().splitlines()]


def test_counting_changes_no_bit(config, tmp_path, monkeypatch):
    run.train(config)
    counted = last(config)
    config.run_dir = str(tmp_path / "uncounted")
    monkeypatch.setattr(speed.Speed, "on_train_batch_start", lambda self, *_: None)
    run.train(config)
    assert_same(counted["state_dict"], last(config)["state_dict"])
    assert_same(counted["optimizer_states"], last(config)["optimizer_states"])


def test_operations_of_a_step(config, monkeypatch):
    monkeypatch.setattr(speed, "matrix_rate", lambda device, dtype: 1e9)
    run.train(config)
    line = lines(config)[0]
    # Three rows through two 4 x 4 layers, and back to the weights of one (its input needs no gradient).
    expected = 2 * 3 * 4 * 4 * 3
    per_second = line["throughput/samples_per_s"] / 3 * expected
    assert line["throughput/tflops"] == pytest.approx(per_second / 1e12)
    assert line["throughput/matrix_share"] == pytest.approx(per_second / 1e9)


def test_waiting_for_data_is_seen(config, monkeypatch):
    read = toy_training.Rows.__getitems__

    def slow(self, visits):
        time.sleep(0.2)
        return read(self, visits)

    run.train(config)
    quick = [line["throughput/wait_share"] for line in lines(config)]
    config.run_dir += "-slow"
    monkeypatch.setattr(toy_training.Rows, "__getitems__", slow)
    run.train(config)
    assert min(line["throughput/wait_share"] for line in lines(config)) > max(0.3, *quick[1:])
    assert all(0 <= line["throughput/saving_share"] < 1 for line in lines(config))


def test_the_matrix_rate_is_a_rate():
    assert 1e8 < speed.matrix_rate(torch.device("cpu"), torch.float32) < 1e15
