"""Contribution: what a seed takes off the loss, in points of score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esper.network.attribution import contributions, gain
from esper.network.growing_network import GrowingNetwork
from esper.network.slot import Mode
from network.hosts import WAIT, advance, fossilize, germinate, prune


def by_score(score: float) -> tuple[float, float]:
    """An evaluation by which contributions are differences of the score."""
    return 1 - score, score


class Bench:
    """A host of two identities; a seed in slot s is made to add 2^s · 0.1, so that scores can be worked out by hand."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Identity(), nn.Identity())
        self.network = GrowingNetwork(self.model, ["0", "1"], torch.zeros(1, 4))
        self.calls = 0

    def grow(self, slot: int) -> None:
        self.network.step(germinate("mlp", slot))
        seed = self.network.slots[slot].seed
        assert seed is not None
        with torch.no_grad():
            seed.blueprint.out.bias.fill_(0.1 * 2**slot)

    def evaluate(self) -> tuple[float, float]:
        self.calls += 1
        assert not torch.is_grad_enabled()
        return by_score(self.model.eval()(torch.zeros(1, 4)).mean().item())

    def evaluate_now(self) -> float:
        with torch.no_grad():
            return self.evaluate()[1]

    def contributions(self, baseline: tuple[float, float] | None = None) -> dict[int, float]:
        self.calls = 0
        return contributions(self.network, self.evaluate, baseline)


def test_nothing_to_measure_costs_nothing() -> None:
    bench = Bench()
    assert bench.contributions() == {}
    assert bench.calls == 0


def test_a_seed_in_training_is_measured_as_if_blended_at_alpha_1() -> None:
    bench = Bench()
    bench.grow(1)
    assert bench.contributions() == {1: pytest.approx(0.2)}
    assert bench.calls == 2
    assert bench.contributions(baseline=by_score(0.0)) == {1: pytest.approx(0.2)}
    assert bench.calls == 1


def test_a_seed_in_mid_blend_is_measured_at_its_target() -> None:
    bench = Bench()
    bench.grow(1)
    bench.network.step(advance(1, "standard", 0.5))
    baseline = by_score(bench.evaluate_now())
    assert bench.contributions(baseline) == {1: pytest.approx(0.1)}
    assert bench.calls == 2


def test_a_seed_on_probation_needs_one_evaluation_beside_the_baseline() -> None:
    bench = Bench()
    bench.grow(0)
    bench.grow(1)
    bench.network.step(advance(0, target=0.7))
    bench.network.step(advance(1))
    score = bench.evaluate_now()
    assert score == pytest.approx(0.27)
    assert bench.contributions(baseline=by_score(score)) == {0: pytest.approx(0.07), 1: pytest.approx(0.2)}
    assert bench.calls == 2
    assert bench.evaluate_now() == score, "measuring has changed the network"


def test_fossils_and_seeds_that_are_being_pruned_are_not_measured() -> None:
    bench = Bench()
    bench.grow(0)
    bench.grow(1)
    bench.network.step(advance(0))
    bench.network.step(advance(1))
    bench.contributions()
    bench.network.step(fossilize(0))
    bench.network.step(prune(1, "slow"))
    assert bench.contributions() == {}
    kept = bench.network.slot_readings()
    assert [r.contribution for r in kept] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert [r.contribution_age for r in kept] == [2, 2]


def test_the_books_keep_the_latest_two_and_their_age() -> None:
    bench = Bench()
    bench.grow(1)

    def books() -> tuple[float | None, float | None, int | None]:
        reading = bench.network.slot_readings()[1]
        return reading.contribution, reading.contribution_before, reading.contribution_age

    assert books() == (None, None, None)
    bench.contributions()
    assert books() == (pytest.approx(0.2), None, 0)
    bench.network.step(WAIT)
    assert books() == (pytest.approx(0.2), None, 1)
    bench.network.step(advance(1, target=0.5))
    bench.contributions()
    assert books() == (pytest.approx(0.1), pytest.approx(0.2), 0)
    bench.network.step(prune(1))
    assert books() == (None, None, None)


def test_a_seed_that_breaks_the_network_takes_all_points() -> None:
    bench = Bench()
    bench.grow(1)
    seed = bench.network.slots[1].seed
    assert seed is not None
    with torch.no_grad():
        seed.blueprint.out.bias.fill_(float("nan"))
    assert contributions(bench.network, bench.evaluate, (0.4, 0.6)) == {1: -1.0}


def test_an_evaluation_that_fails_leaves_the_seed_as_it_was() -> None:
    bench = Bench()
    bench.grow(0)
    with pytest.raises(ZeroDivisionError):
        contributions(bench.network, lambda: (1.0, 1 / 0))
    assert bench.network.slot_readings()[0].contribution is None
    assert bench.network.slots[0]._mode is Mode.ISOLATED


# ---------------------------------------------------------------------- loss, in points of score

LOSS, SCORE = st.floats(1e-3, 1e3), st.floats(-5, 1)


@given(before=LOSS, after=LOSS, scale=LOSS)
def test_where_the_score_is_a_linear_function_of_the_loss_a_gain_is_the_difference_of_scores(
    before: float, after: float, scale: float
) -> None:
    scores = [1 - loss / scale for loss in (after, before)]
    assert gain((after, scores[0]), (before, scores[1])) == pytest.approx(scores[0] - scores[1], rel=1e-6, abs=1e-9)


@given(a=st.tuples(LOSS, SCORE), b=st.tuples(LOSS, SCORE), unit=LOSS)
def test_a_gain_knows_no_unit_of_the_loss_and_is_a_loss_the_other_way(
    a: tuple[float, float], b: tuple[float, float], unit: float
) -> None:
    assert gain(a, b) == -gain(b, a)
    assert gain((unit * a[0], a[1]), (unit * b[0], b[1])) == pytest.approx(gain(a, b), rel=1e-6, abs=1e-9)


def test_a_loss_tells_what_a_score_does_not_show() -> None:
    assert gain((1.8, 0.5), (2.0, 0.5)) == pytest.approx(0.05)
    assert gain((1.8, 0.5), (1.8, 0.6)) == 0.0


@pytest.mark.parametrize("broken", [(float("nan"), 0.9), (0.1, float("nan")), (float("inf"), 0.0)])
def test_no_network_is_worse_than_one_that_is_not_finite(broken: tuple[float, float]) -> None:
    assert gain(broken, (5.0, 0.1)) == -1.0
    assert gain(broken, broken) == 0.0
    assert gain((0.0, 1.0), (0.0, 1.0)) == 0.0


def test_a_loss_below_0_has_no_shares() -> None:
    with pytest.raises(ValueError, match=r"a loss of 0 or more, got the loss -3\.0; measure them by a function"):
        gain((-3.0, 0.5), (-2.0, 0.4))
