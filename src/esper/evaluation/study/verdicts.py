"""The claims about growth and about the learned controller, judged by the intervals of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from esper.evaluation import names
from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import Interval, paired_difference, probability_of_improvement
from esper.evaluation.study.competitors import COMPETITORS
from esper.evaluation.table import Table, objective_on_test, score_on_test, total_flops
from esper.network.blueprints import BLUEPRINTS, convolutional
from esper.observation import doublings

CONVOLUTIONS = tuple(name for name, kind in BLUEPRINTS.items() if kind.__module__ == convolutional.__name__)
"""Blueprints that mix neighbouring positions."""


def kept_convolutions(result: EpisodeResult) -> float:
    """Number of convolutional blocks in the final network."""
    return float(sum(blueprint in CONVOLUTIONS for _, blueprint, _, _ in result.architecture))


FEWEST = 5
"""Values that an interval must rest on to show anything: the bootstrap draws from those that are there, so that of two
it makes an interval that misses the truth as often as not, and of one none at all."""


def too_few_seeds(seeds: int, tasks: int) -> str:
    """What is to be known of a comparison of so few seeds; empty if there are enough."""
    if seeds >= FEWEST:
        return ""
    judged = "no claim is judged" if seeds * tasks < FEWEST else "only what rests on several tasks is judged"
    return f"intervals for one task rest on {seeds} seeds and say little, {FEWEST} or more are needed; {judged}"


@dataclass(frozen=True)
class Check:
    """One comparison that a claim rests on."""

    what: str
    interval: Interval | None
    """``None`` where an arm was not run."""
    threshold: float
    """The whole interval must lie above it."""

    @property
    def tested(self) -> bool:
        """Whether there is enough to judge by."""
        return self.interval is not None and self.interval.values >= FEWEST

    @property
    def holds(self) -> bool:
        """Whether the interval shows it."""
        return self.tested and self.interval is not None and self.interval.low > self.threshold

    @property
    def shown(self) -> str:
        """In a word."""
        if not self.tested:
            return "not tested" if self.interval is None else "too few seeds"
        return "yes" if self.holds else "no"


@dataclass(frozen=True)
class Claim:
    """A claim and what speaks for or against it."""

    title: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """``holds`` if every check does, ``fails`` if none does, else ``holds in part``; ``not tested`` without any."""
        if not any(check.tested for check in self.checks):
            return "not tested"
        held = sum(check.holds for check in self.checks)
        return "holds" if held == len(self.checks) else "holds in part" if held else "fails"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        checks = [{**asdict(check), "holds": check.holds, "shown": check.shown} for check in self.checks]
        return {"title": self.title, "verdict": self.verdict, "checks": checks}


def claims(table: Table, rents: Sequence[float], budgets: Sequence[float], own: Sequence[str] = ()) -> list[Claim]:
    """The five claims, in rising order; the last but one is about the competitors with these budgets.

    ``own`` are controllers of the user's own, which the learned one has to beat as well.
    """
    return [
        _growth_works(table),
        _growth_helps(table),
        _controller_matters(table, own),
        _growth_competes(table, budgets),
        _knows_when_not_to(table, rents),
    ]


def _growth_works(table: Table) -> Claim:
    cheaper = lambda r: -math.log2(total_flops(r))  # noqa: E731
    return Claim(
        "Growth works: no worse than the grown network trained from scratch, for fewer FLOPs",
        (
            Check(
                "test score: grown − static-final (equal epochs)",
                table.difference(score_on_test, names.TAMIYO, names.STATIC_EPOCHS),
                -0.005,
            ),
            Check(
                "training FLOPs saved: log2(static-final, equal epochs / grown)",
                table.difference(cheaper, names.TAMIYO, names.STATIC_EPOCHS),
                0.0,
            ),
        ),
    )


def _growth_helps(table: Table) -> Claim:
    mine, theirs = (table.scores(arm, objective_on_test) for arm in (names.TAMIYO, names.RANDOM_POPULATION))
    return Claim(
        "Growth helps: better than the same network from scratch, and than random architectures of equal compute",
        (
            Check(
                "test score: grown − static-final (equal epochs)",
                table.difference(score_on_test, names.TAMIYO, names.STATIC_EPOCHS),
                0.0,
            ),
            Check(
                "test score: grown − static-final (equal FLOPs)",
                table.difference(score_on_test, names.TAMIYO, names.STATIC_FLOPS),
                0.0,
            ),
            Check(
                "probability of a higher J (score less rent for parameters) than a random architecture",
                probability_of_improvement(mine, theirs),
                0.5,
            ),
        ),
    )


def _controller_matters(table: Table, own: Sequence[str]) -> Claim:
    unseen = [task for task in table.tasks if task not in table.trained_on]
    groups = {"tasks in training": [t for t in table.tasks if t in table.trained_on], "unseen tasks": unseen}
    others = (names.RANDOM_LEGAL, names.FIXED, names.HEURISTIC, names.AUDITION, names.SHUFFLED, names.FOREIGN, *own)
    return Claim(
        "The learned controller matters: above every other controller, on tasks in training and on unseen ones",
        tuple(
            Check(
                f"J on test data, {group}: Tamiyo − {other}",
                table.difference(objective_on_test, names.TAMIYO, other, tasks),
                0.0,
            )
            for group, tasks in groups.items()
            if tasks
            for other in others
            if other in table.arms
        ),
    )


def _growth_competes(table: Table, budgets: Sequence[float]) -> Claim:
    def difference(arm: str) -> Interval | None:
        tasks = [task for task in table.tasks if table.select(task, arm)]
        return table.difference(objective_on_test, names.TAMIYO, arm, tasks) if tasks else None

    arms = [names.at_budget(competitor.name, budget) for budget in budgets for competitor in COMPETITORS]
    return Claim(
        "Growth competes: J no lower than by searches, and by larger hosts, for as much compute and for more",
        tuple(Check(f"J on test data: Tamiyo − {arm}", difference(arm), -0.005) for arm in arms),
    )


def _knows_when_not_to(table: Table, rents: Sequence[float]) -> Claim:
    checks = []
    if {"mnist1d", "mnist1d_shuffled"} <= set(table.tasks):
        kept = table.scores(names.TAMIYO, kept_convolutions)
        spared = paired_difference({"": kept["mnist1d"]}, {"": kept["mnist1d_shuffled"]})
        checks.append(Check("convolutions kept: mnist1d − mnist1d_shuffled", spared, 0.0))
    size = lambda r: doublings(r.host_params, r.added_params)  # noqa: E731
    neighbours = list(pairwise(rents))
    for low, high in [*neighbours, (rents[0], rents[-1])] if len(neighbours) > 1 else neighbours:
        shrunk = table.difference(size, names.at_rent(names.TAMIYO, low), names.at_rent(names.TAMIYO, high))
        checks.append(Check(f"doublings of the parameters: rent {low:g} − rent {high:g}", shrunk, 0.0))
    return Claim("It knows when not to grow: no needless convolutions, and rent steers the size", tuple(checks))
