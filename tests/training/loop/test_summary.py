"""The summary of a run: its numbers are the run's, its estimate is arithmetic."""

import logging

from escdiff.training.loop import run
from escdiff.training.loop.monitoring import summary


def test_a_run_says_what_it_is_made_of_and_what_it_will_take(config, caplog):
    config.trainer.max_steps, config.trainer.accumulate, config.trainer.price_per_hour = 30, 2, 2.0
    caplog.set_level(logging.INFO, summary.__name__)
    run.train(config)
    said = [record.getMessage() for record in caplog.records if record.name == summary.__name__]
    assert said[0].split() == ["trained", "parameters", "20", "in", "float32"]  # a linear layer of 4 x 4 and 4
    assert said[1].split(maxsplit=2)[2] == "3 samples x 2 batches"
    assert len(said) == 3 and " s a step: 10 more take " in said[2] and "at 2 an hour" in said[2]


def test_the_estimate():
    assert summary.estimate(0.5, 100) == "0.5 s a step: 100 more take 1 min"
    assert (
        summary.estimate(3.6, 10_000, price=3.0)
        == "3.6 s a step: 10,000 more take 10.0 h, which cost 30.00 at 3 an hour"
    )
