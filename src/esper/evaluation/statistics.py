"""Statistics of a comparison: interquartile mean, bootstrap intervals, paired differences, probability of improvement.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021). Every
interval is a 95 % percentile bootstrap over seeds, stratified by task: seeds are redrawn within each task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import trim_mean

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float
    values: int
    """On how many values it rests; the fewer of two samples'."""

    def __str__(self) -> str:
        return f"{self:.3f}"

    def __format__(self, numbers: str) -> str:
        """Estimate and bounds as text; ``numbers`` is the format of each, ``.3f`` by default."""
        numbers = numbers or ".3f"
        return f"{self.estimate:{numbers}} [{self.low:{numbers}}, {self.high:{numbers}}]"

    def above(self, other: Interval) -> bool:
        """Whether the whole of this interval lies above the whole of the other."""
        return self.low > other.high


Scores = Mapping[str, Sequence[float]]
"""Task → one value per seed, [n]; the seeds of two arms are paired by position."""


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.mean(values, axis=-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half of ``values`` over the last axis: robust against outliers, yet uses half of the runs."""
    return trim_mean(values, 0.25, axis=-1)


def _strata(scores: Scores) -> list[np.ndarray]:
    strata = [np.asarray(values, dtype=np.float64) for values in scores.values()]
    if not strata or any(len(s) == 0 for s in strata):
        raise ValueError("expected at least one task with at least one value each, got none")
    if not all(np.isfinite(s).all() for s in strata):
        raise ValueError("expected finite values, got NaN or infinity; look at the run that produced them")
    return strata


def bootstrap(
    scores: Scores, statistic: Callable[[np.ndarray], np.ndarray] = mean, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """``statistic`` of all values, with a bootstrap interval stratified by task.

    Args:
        scores: Values by task.
        statistic: Takes ``[..., n]`` to ``[...]``.
        seed: Of the resampling.
        resamples: Number of times the values are drawn anew.

    Raises:
        ValueError: For an empty task or values that are not finite.
    """
    strata = _strata(scores)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([s[rng.integers(len(s), size=(resamples, len(s)))] for s in strata], axis=1)
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return Interval(float(statistic(np.concatenate(strata))), float(low), float(high), sum(map(len, strata)))


def paired_difference(a: Scores, b: Scores, *, seed: int = 0) -> Interval:
    """Mean of a − b over paired seeds.

    Raises:
        ValueError: When the arms do not hold the same tasks and numbers of seeds.
    """
    if {t: len(v) for t, v in a.items()} != {t: len(v) for t, v in b.items()}:
        raise ValueError("paired arms must hold the same tasks with the same number of seeds each")
    return bootstrap({t: np.subtract(a[t], b[t]).tolist() for t in a}, seed=seed)


def probability_of_improvement(a: Scores, b: Scores, *, seed: int = 0, resamples: int = 2_000) -> Interval:
    """Probability that a run of ``a`` beats a run of ``b`` on the same task, ties counting half; mean over tasks."""
    rng = np.random.default_rng(seed)

    def probability(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
        def on_one_task(x: np.ndarray, y: np.ndarray) -> float:
            return float(np.mean((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])))

        return float(np.mean([on_one_task(x, y) for x, y in zip(xs, ys, strict=True)]))

    xs, ys = _strata(a), _strata({task: b[task] for task in a})
    redraw = lambda strata: [s[rng.integers(len(s), size=len(s))] for s in strata]  # noqa: E731
    drawn = [probability(redraw(xs), redraw(ys)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    values = min(sum(map(len, strata)) for strata in (xs, ys))
    return Interval(probability(xs, ys), float(low), float(high), values)
