"""Intervals mean what they say."""

import numpy as np
import pytest

from esper.evaluation import (
    Interval,
    bootstrap,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
)


def test_interquartile_mean_ignores_the_outer_quarters():
    assert interquartile_mean(np.array([-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 100.0])) == pytest.approx(3.5)


def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = bootstrap({"task": rng.normal(1.0, 0.5, 30).tolist()}, seed=trial, resamples=1_000)
        covered += interval.low <= 1.0 <= interval.high
    assert 180 <= covered <= 198


def test_strata_are_redrawn_within_their_task():
    """Two tasks far apart: without stratification the interval of the mean would be wide."""
    interval = bootstrap({"easy": [0.75] * 10, "hard": [0.25] * 10})
    assert interval == Interval(0.5, 0.5, 0.5, 20)


def test_paired_differences_cancel_what_the_seeds_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 20)
    better, worse = {"t": (shared + 0.1).tolist()}, {"t": shared.tolist()}
    difference = paired_difference(better, worse)
    assert difference.low == pytest.approx(0.1)
    assert difference.high == pytest.approx(0.1)
    assert not bootstrap(better).above(bootstrap(worse))


def test_probability_of_improvement():
    high, low = {"t": [2.0, 3.0, 4.0]}, {"t": [0.0, 1.0, 1.5]}
    assert probability_of_improvement(high, low).estimate == 1.0
    assert probability_of_improvement(low, high).estimate == 0.0
    assert probability_of_improvement(high, high).estimate == 0.5


def test_an_interval_knows_on_how_many_values_it_rests():
    few, many = {"a": [1.0, 2.0], "b": [3.0]}, {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0]}
    assert (bootstrap(few).values, bootstrap(many).values) == (3, 5)
    assert probability_of_improvement(few, many).values == probability_of_improvement(many, few).values == 3


def test_the_same_seed_gives_the_same_interval():
    scores = {"t": np.random.default_rng(0).normal(size=12).tolist()}
    assert bootstrap(scores) == bootstrap(scores)
    assert bootstrap(scores, seed=1) != bootstrap(scores, seed=2)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="at least one task"):
        bootstrap({})
    with pytest.raises(ValueError, match="finite"):
        bootstrap({"t": [1.0, float("nan")]})
    with pytest.raises(ValueError, match="the same number of seeds"):
        paired_difference({"t": [1.0, 2.0]}, {"t": [1.0]})
