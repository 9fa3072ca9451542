"""What a growth logs, by name: one row a step, of numbers and of short texts, for any tracker or logger.

The tables say what there is, in which unit; a row holds what is known of it. The same facts, with what the policy saw
and why it decided so, stand in the history (:class:`~esper.growth.step.Step`) and in what ``growth.result()`` gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from esper.growth.result import GrowthResult
from esper.growth.step import Step
from esper.lifecycle import Stage

Value: TypeAlias = float | str
Log: TypeAlias = Callable[[Mapping[str, Value], int], object]
"""Where rows go: a function of the row and the number of its step, which rises or stays from call to call."""


@dataclass(frozen=True)
class Logged:
    """One thing that is logged."""

    name: str
    """With ``{slot}`` or ``{slot}/{blueprint}`` at its end where there is one for each."""
    unit: str
    meaning: str
    read: Callable[[Any], Value | Mapping[str, Value] | None]
    """From a step, or from a result; by what stands at the end of the name where there is one for each."""


STEP = (
    Logged("growth/loss", "the task's", "validation loss", lambda step: step.loss),
    Logged("growth/score", "share, at most 1", "validation score", lambda step: step.score),
    Logged("growth/train_loss", "the task's", "mean training loss of the interval", lambda step: step.train_loss),
    Logged("growth/added_params", "parameters", "all seeds during the interval", lambda step: step.added_params),
    Logged(
        "growth/stage/{slot}",
        "0 to 5",
        f"stage during the interval: {', '.join(f'{stage} {stage.name.lower()}' for stage in Stage)}",
        lambda step: {slot: int(Stage[stage]) for slot, (stage, _, _) in step.slots.items()},
    ),
    Logged(
        "growth/alpha/{slot}",
        "share, 0 to 1",
        "how much of the seed was blended in during the interval",
        lambda step: {slot: alpha for slot, (_, _, alpha) in step.slots.items()},
    ),
    Logged(
        "growth/contribution/{slot}",
        "points of score, 0.01 is one",
        "what the seed takes off the loss",
        lambda step: step.contributions,
    ),
    Logged(
        "growth/audition/{slot}/{blueprint}",
        "points of score, 0.01 is one",
        "what a candidate in an audition would take off the loss",
        lambda step: {f"{slot}/{kind}": gain for slot, gains in step.auditions.items() for kind, gain in gains.items()},
    ),
    Logged("growth/rolled_back", "0 or 1", "the run had diverged and was taken back", lambda step: step.rolled_back),
    Logged("growth/evaluations", "evaluations", "on validation data, in this step", lambda step: step.evaluations),
    Logged("growth/seconds", "seconds", "since the step before, training included", lambda step: step.seconds),
    Logged("growth/decision", "text", "what was decided for the next interval, unless to wait", lambda s: _decision(s)),
    Logged("growth/event/{slot}", "text", "what happened to the slot", lambda step: _events(step)),
    Logged("growth/judged/{slot}", "text", "why a seed that was undecided stays or goes", lambda step: step.judged),
)
"""What a row holds of each step."""

VERDICT = (
    Logged("growth/verdict", "text", "whether growing was worth it, and why", lambda result: result.verdict.words),
    Logged("growth/J", "points of score, 0.01 is one", "validation score less the rent", lambda result: result.J),
    Logged(
        "growth/rent_paid",
        "points of score, 0.01 is one",
        "what the network pays for its added parameters",
        lambda result: result.rent_paid,
    ),
    Logged(
        "growth/gain",
        "points of score, 0.01 is one",
        "score less that of the host alone, or where that was not trained, the most that it can be",
        lambda result: result.verdict.gain,
    ),
    Logged(
        "growth/gain_error",
        "points of score, 0.01 is one",
        "half the 95 % interval of the gain; only where the host alone was trained",
        lambda result: result.verdict.error,
    ),
    Logged("growth/final_params", "parameters", "seeds in the network at the end", lambda result: result.added_params),
)
"""What the last row holds besides."""


def step_row(step: Step) -> dict[str, Value]:
    """The row of one step."""
    return _row(STEP, step)


def verdict_row(result: GrowthResult) -> dict[str, Value]:
    """What a growth came to."""
    return _row(VERDICT, result)


def numbers(row: Mapping[str, Value]) -> dict[str, float]:
    """A row without its texts, for loggers that take numbers alone."""
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def _row(table: Iterable[Logged], source: Step | GrowthResult) -> dict[str, Value]:
    """What is known: finite numbers, and texts that say something."""
    row: dict[str, Any] = {}
    for entry in table:
        found = entry.read(source)
        stem = entry.name.partition("{")[0]
        row |= {f"{stem}{end}": value for end, value in found.items()} if isinstance(found, Mapping) else {stem: found}
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    known = {name: float(v) for name, v in row.items() if v is not None and not isinstance(v, str)}
    return {name: value for name, value in known.items() if math.isfinite(value)} | texts


def _decision(step: Step) -> str:
    if step.decided.startswith(("WAIT", "no decision")):
        return ""
    return f"{step.decided}: {step.reason}" if step.reason else step.decided


def _events(step: Step) -> dict[str, str]:
    told: dict[str, list[str]] = {}
    for event in step.events:
        words = f"{event.kind}, {event.blueprint or 'no seed'}, now {event.stage.name.lower()}"
        told.setdefault(event.slot, []).append(words)
    return {slot: "; ".join(words) for slot, words in told.items()}
