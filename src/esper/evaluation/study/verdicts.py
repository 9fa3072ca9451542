"""The claims about growth and about the learned controller, judged by the intervals of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import Interval, interquartile_mean, paired_difference, probability_of_improvement
from esper.evaluation.study import arms
from esper.evaluation.table import Column, Table, summary
from esper.network.blueprints import BLUEPRINTS, convolutional
from esper.observation import doublings

CONVOLUTIONS = tuple(name for name, kind in BLUEPRINTS.items() if kind.__module__ == convolutional.__name__)
"""Blueprints that mix neighbouring positions."""


def score_on_test(result: EpisodeResult) -> float:
    """Score on test data, in [0, 1]."""
    return result.test_score


def objective_on_test(result: EpisodeResult) -> float:
    """J on test data: the score less the rent for the parameters."""
    return result.test_J


def total_flops(result: EpisodeResult) -> float:
    """FLOPs of the whole training."""
    return result.train_flops[-1]


def kept_convolutions(result: EpisodeResult) -> float:
    """Number of convolutional blocks in the final network."""
    return float(sum(blueprint in CONVOLUTIONS for _, blueprint, _, _ in result.architecture))


def _difference_to(table: Table, task: str, arm: str) -> Interval | None:
    """Mean of J(Tamiyo) − J(arm) on test data, where the seeds are paired."""
    paired = arm not in (arms.TAMIYO, arms.RANDOM_POPULATION)
    paired &= len(table.results[task, arm]) == len(table.results[task, arms.TAMIYO])
    return table.difference(objective_on_test, arms.TAMIYO, arm, [task]) if paired else None


def _improvement_on(table: Table, task: str, arm: str) -> Interval | None:
    """Probability that an episode of Tamiyo comes to a higher J on test data than one of ``arm``."""
    if arm == arms.TAMIYO:
        return None
    mine, theirs = (table.scores(a, objective_on_test, [task]) for a in (arms.TAMIYO, arm))
    return probability_of_improvement(mine, theirs)


COLUMNS: dict[str, Column] = {
    "test_score": summary(score_on_test, interquartile_mean),
    "total_params": summary(lambda result: float(result.total_params), interquartile_mean),
    "train_flops": summary(total_flops, interquartile_mean),
    "test_J": summary(objective_on_test, interquartile_mean),
    "difference": _difference_to,
    "improvement": _improvement_on,
}
"""Interquartile means over episodes, and the learned controller against each arm."""


@dataclass(frozen=True)
class Check:
    """One comparison that a claim rests on."""

    what: str
    interval: Interval
    threshold: float
    """The whole interval must lie above it."""

    @property
    def holds(self) -> bool:
        """Whether the interval shows it."""
        return self.interval.low > self.threshold


@dataclass(frozen=True)
class Claim:
    """A claim and what speaks for or against it."""

    title: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """``holds`` if every check does, ``fails`` if none does, else ``holds in part``."""
        held = sum(check.holds for check in self.checks)
        return "holds" if held == len(self.checks) else "holds in part" if held else "fails"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        checks = [{**asdict(check), "holds": check.holds} for check in self.checks]
        return {"title": self.title, "verdict": self.verdict, "checks": checks}


def claims(table: Table, rents: Sequence[float]) -> list[Claim]:
    """The four claims, in rising order."""
    return [_growth_works(table), _growth_helps(table), _controller_matters(table), _knows_when_not_to(table, rents)]


def _growth_works(table: Table) -> Claim:
    cheaper = lambda r: -math.log2(total_flops(r))  # noqa: E731
    return Claim(
        "Growth works: no worse than the grown network trained from scratch, for fewer FLOPs",
        (
            Check(
                "test score: grown − static-final (equal epochs)",
                table.difference(score_on_test, arms.TAMIYO, arms.STATIC_EPOCHS),
                -0.005,
            ),
            Check(
                "training FLOPs saved: log2(static-final, equal epochs / grown)",
                table.difference(cheaper, arms.TAMIYO, arms.STATIC_EPOCHS),
                0.0,
            ),
        ),
    )


def _growth_helps(table: Table) -> Claim:
    mine, theirs = (table.scores(arm, objective_on_test) for arm in (arms.TAMIYO, arms.RANDOM_POPULATION))
    return Claim(
        "Growth helps: better than the same network from scratch, and than random architectures of equal compute",
        (
            Check(
                "test score: grown − static-final (equal epochs)",
                table.difference(score_on_test, arms.TAMIYO, arms.STATIC_EPOCHS),
                0.0,
            ),
            Check(
                "test score: grown − static-final (equal FLOPs)",
                table.difference(score_on_test, arms.TAMIYO, arms.STATIC_FLOPS),
                0.0,
            ),
            Check(
                "probability of a higher J (score less rent for parameters) than a random architecture",
                probability_of_improvement(mine, theirs),
                0.5,
            ),
        ),
    )


def _controller_matters(table: Table) -> Claim:
    unseen = [task for task in table.tasks if task not in table.trained_on]
    groups = {"tasks in training": [t for t in table.tasks if t in table.trained_on], "unseen tasks": unseen}
    others = (arms.RANDOM_LEGAL, arms.FIXED, arms.HEURISTIC, arms.SHUFFLED, arms.FOREIGN)
    return Claim(
        "The learned controller matters: above every other controller, on tasks in training and on unseen ones",
        tuple(
            Check(
                f"J on test data, {group}: Tamiyo − {other}",
                table.difference(objective_on_test, arms.TAMIYO, other, tasks),
                0.0,
            )
            for group, tasks in groups.items()
            if tasks
            for other in others
            if other in table.arms
        ),
    )


def _knows_when_not_to(table: Table, rents: Sequence[float]) -> Claim:
    checks = []
    if {"mnist1d", "mnist1d_shuffled"} <= set(table.tasks):
        kept = table.scores(arms.TAMIYO, kept_convolutions)
        spared = paired_difference({"": kept["mnist1d"]}, {"": kept["mnist1d_shuffled"]})
        checks.append(Check("convolutions kept: mnist1d − mnist1d_shuffled", spared, 0.0))
    size = lambda r: doublings(r.host_params, r.added_params)  # noqa: E731
    neighbours = list(pairwise(rents))
    for low, high in [*neighbours, (rents[0], rents[-1])] if len(neighbours) > 1 else neighbours:
        shrunk = table.difference(size, arms.at_rent(arms.TAMIYO, low), arms.at_rent(arms.TAMIYO, high))
        checks.append(Check(f"doublings of the parameters: rent {low:g} − rent {high:g}", shrunk, 0.0))
    return Claim("It knows when not to grow: no needless convolutions, and rent steers the size", tuple(checks))
