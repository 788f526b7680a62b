"""Figures of speed: what is counted, and that counting changes nothing."""

import json
import time

import pytest
import torch
import toy_training
from toy_training import assert_same, last

from escdiff.training.loop import run
from escdiff.training.loop.monitoring import speed

SHAPES = ((16, 8), (20, 8), (20, 8))  # queries, keys, values: tokens, width


def lines(config):
    return [json.loads(line) for line in run.RunFolder(config.run_dir).metrics.read_text(encoding="utf-8").splitlines()]


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


def test_attention_counts_as_its_products_do():
    """Whatever kernel the device has for it: softmax(q k') v has two products, its gradients four, or five with the
    scores made again."""
    query, key, value = (torch.randn(2, 3, tokens, width, requires_grad=True) for tokens, width in SHAPES)
    with speed.count_operations() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    scores = 2 * 2 * 3 * 16 * 20 * 8  # of 2 x 3 heads, 16 queries and 20 keys of width 8
    assert counter.get_total_flops() == 2 * scores
    with speed.count_operations() as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * scores


def test_the_matrix_rate_is_the_products_operations_by_its_best_time():
    times = iter([0.0, 9.0, 10.0, 14.0, 20.0, 22.0, 30.0, 34.0])  # the best of 9, 4, 2 and 4 seconds
    rate = speed.matrix_rate(torch.device("cpu"), torch.float32, lambda: next(times))
    assert rate == 2 * 1024**3 / 2.0


def test_a_busy_start_does_not_stay_the_measure(config, monkeypatch):
    """The rate was 1.3 to 1.9 times too low where other programs ran at the start."""
    rates = iter([1.0, 1e9, 2.0])  # at the start, with the first count, with a later one
    monkeypatch.setattr(speed, "matrix_rate", lambda device, dtype: next(rates, 2.0))
    run.train(config)
    for line in lines(config):
        assert line["throughput/matrix_share"] == pytest.approx(line["throughput/tflops"] * 1e12 / 1e9)


def test_no_step_does_more_than_the_device_can(config, monkeypatch):
    monkeypatch.setattr(speed, "matrix_rate", lambda device, dtype: 1.0)
    run.train(config)
    assert max(line["throughput/matrix_share"] for line in lines(config)) == 1.0
