"""One table for every comparison: what it pairs, what its columns say, and how it is written."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from esper.evaluation import INTERQUARTILE_MEANS, MEANS, EpisodeResult, Interval, Table, names
from esper.evaluation.table import median_growth, printed, to_json


def result(arm: str, seed: int, score: float, *, added: int = 0) -> EpisodeResult:
    """An episode of two decisions in which J is the score."""
    slots = {"block": [("DORMANT", None, 0.0)] * 3}
    return EpisodeResult(
        task="toy",
        arm=arm,
        seed=seed,
        J=score,
        score=score,
        test_score=score,
        host_params=100,
        added_params=added,
        train_samples_seen=0,
        scores=[0.0, 0.1, score],
        sizes=[0, 0, added],
        slots=slots,
        ops=["WAIT", "WAIT"],
        architecture=[],
        train_flops=[0.0, 1e6, 2e6],
        rent=0.0,
    )


@pytest.fixture
def table():
    """Three paired arms, and one that was played on other episodes."""
    scores = {names.HOST_ALONE: 0.2, names.FIXED: 0.5, names.TAMIYO: 0.6, names.RANDOM_POPULATION: 0.4}
    arms = {}
    for arm, score in scores.items():
        seeds = (7, 8, 9) if arm == names.RANDOM_POPULATION else (1, 2, 3)
        arms["toy", arm] = [result(arm, seed, score + i / 100, added=1_000 * i) for i, seed in enumerate(seeds)]
    return Table(arms)


def by_arm(table, columns):
    return {row.arm: row.intervals for row in table.rows(columns)}


def test_a_difference_is_shown_where_the_same_episodes_were_played(table):
    rows = by_arm(table, INTERQUARTILE_MEANS)
    assert rows[names.FIXED]["difference"].estimate == pytest.approx(0.1)
    assert rows[names.FIXED]["difference"].low == pytest.approx(0.1), "what the seeds share cancels"
    assert rows[names.RANDOM_POPULATION]["difference"] is None, "as many episodes, but others"
    assert rows[names.TAMIYO]["difference"] is None


def test_the_probability_of_improvement_needs_no_pairs(table):
    rows = by_arm(table, INTERQUARTILE_MEANS)
    assert rows[names.RANDOM_POPULATION]["improvement"].estimate == 1.0
    assert rows[names.TAMIYO]["improvement"] is None


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (MEANS, {"test_score", "J", "total_params"}),
        (INTERQUARTILE_MEANS, {"test_score", "total_params", "train_flops", "test_J", "difference", "improvement"}),
    ],
    ids=["train", "compare"],
)
def test_rows_are_written_by_the_names_of_their_columns(table, columns, expected):
    rows = json.loads(json.dumps([row.to_json() for row in table.rows(columns)]))
    assert [row["arm"] for row in rows] == table.arms
    for row in rows:
        assert set(row) == {"task", "arm", "episodes"} | expected
        assert row["episodes"] == 3
        assert set(row["test_score"]) == {"estimate", "low", "high", "values"}


def test_everything_is_in_the_json_of_a_comparison(table):
    paired = {unit: found for unit, found in table.results.items() if unit[1] != names.RANDOM_POPULATION}
    data = to_json(Table(paired), names.TAMIYO)
    assert set(data) == {"rows", "differences", "episodes"}
    assert [d["other"] for d in data["differences"]] == [names.HOST_ALONE, names.FIXED]
    assert data["differences"][1]["J"]["estimate"] == pytest.approx(0.1)
    assert len(data["episodes"]) == 9


def test_the_terminal_shows_every_column_as_a_reader_expects_it(table):
    output = io.StringIO()
    Console(width=160, file=output).print(printed(table, names.TAMIYO))
    text = output.getvalue()
    for heading in ("task", "controller", "test score", "parameters", "J(Tamiyo) − J"):
        assert heading in text
    fixed = next(line for line in text.splitlines() if names.FIXED in line)
    assert "0.510 [" in fixed
    assert "1,100 [100, 2,100]" in fixed
    assert "0.100 [0.100, 0.100]" in fixed


def test_an_interval_is_written_in_the_numbers_that_are_asked_for():
    interval = Interval(1234.5678, 0.25, 2_000.0, 5)
    assert str(interval) == f"{interval}" == "1234.568 [0.250, 2000.000]"
    assert f"{interval:,.0f}" == "1,235 [0, 2,000]"


def test_the_growth_that_is_shown_is_the_median_one_beside_its_own_host_alone(table):
    record = median_growth(table, "toy", names.TAMIYO)
    assert record.scores[-1] == 0.61
    assert record.host_alone_scores[-1] == pytest.approx(0.21)
    assert median_growth(table, "toy", names.RANDOM_POPULATION).host_alone_scores == ()
