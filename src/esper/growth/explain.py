"""Why growth did at one step what it did: what was decided and said, what was measured, and what the policy saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from esper.growth.result import GrowthResult
from esper.growth.step import Step
from esper.growth.verdict import points


def explain(result: GrowthResult, number: int) -> str:
    """One step in words, a paragraph of lines.

    Raises:
        ValueError: If there is no such step.
    """
    numbers = [step.decision for step in result.steps]
    if number not in numbers:
        have = f"those from {numbers[0]} to {numbers[-1]} are known" if numbers else "none has been made yet"
        raise ValueError(f"there is no step {number}; {have}")
    index = numbers.index(number)
    step = result.steps[index]
    of = f" of {result.horizon}" if result.horizon else ""
    lines = [f"Step {number}{of}: {step.decided}", *_why(step), *_measured(result, step), *_events(step)]
    return "\n".join([*lines, *_seen(result, index)])


def _why(step: Step) -> Iterator[str]:
    if step.why.words:
        yield f"  why: {step.why.words}"
    for head, probabilities in step.why.probabilities.items():
        yield f"  probabilities of {head}: {_listed({c: f'{p:.1%}' for c, p in probabilities.items()})}"
    if step.why.op_values:
        yield f"  Q (what each op leads to, as the policy expects): {_listed(_three(step.why.op_values))}"
    for slot, words in step.judged.items():
        yield f"  judged, {slot}: {words}"


def _measured(result: GrowthResult, step: Step) -> Iterator[str]:
    yield f"  validation: {result.told(step.score)}, loss {step.loss:.4g}; {step.added_params:,} added parameters"
    if step.contributions:
        yield f"  contributions: {_listed({slot: points(value) for slot, value in step.contributions.items()})}"
    for slot, gains in step.auditions.items():
        yield f"  auditions in {slot}: {_listed({kind: points(gain) for kind, gain in gains.items()})}"


def _events(step: Step) -> Iterator[str]:
    if step.rolled_back:
        yield "  the run had diverged and was rolled back"
    for event in step.events:
        yield f"  {event.slot}: {event.kind}, {event.blueprint or 'no seed'}, now {event.stage.name}"


def _seen(result: GrowthResult, index: int) -> Iterator[str]:
    for group, columns in result.saw.items():
        known = {name: values[index] for name, values in columns.items() if index < len(values)}
        shown = {name: value for name, value in known.items() if value}  # neither unknown nor zero
        if shown:
            yield f"  saw of {group}: {_listed(_three(shown))}"


def _three(numbers: Mapping[str, float | None]) -> dict[str, str]:
    return {name: f"{number:.3g}" for name, number in numbers.items()}


def _listed(texts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in texts.items())
