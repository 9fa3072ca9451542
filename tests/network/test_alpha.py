"""The alpha ramp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.actions import CURVES
from esper.network.alpha import CURVE_SHAPES, Ramp

levels = st.floats(0, 1)


@given(levels, levels, st.integers(1, 20), st.sampled_from(CURVES))
def test_a_ramp_goes_monotonically_from_start_to_exactly_its_target(
    start: float, target: float, decisions: int, curve: str
) -> None:
    ramp = Ramp(start, target, decisions, curve)
    alphas = [ramp.alpha]
    while not ramp.finished:
        ramp = ramp.after_one_decision()
        alphas.append(ramp.alpha)
    assert len(alphas) == decisions + 1
    assert alphas[0] == pytest.approx(start, abs=1e-12)
    assert alphas[-1] == target
    rising = sorted(alphas, reverse=target < start)
    assert alphas == pytest.approx(rising, abs=1e-12)
    assert all(-1e-12 <= alpha <= 1 + 1e-12 for alpha in alphas)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_are_symmetric_and_differ(curve: str) -> None:
    shape = CURVE_SHAPES[curve]
    assert (shape(0), shape(0.5), shape(1)) == pytest.approx((0, 0.5, 1))
    assert shape(0.2) + shape(0.8) == pytest.approx(1)
    assert len({round(s(0.2), 6) for s in CURVE_SHAPES.values()}) == len(CURVES)
