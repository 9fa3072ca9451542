"""Calling the user's ``evaluate()``: what it may return, what that is worth, and that it leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.growth import ranks

Evaluate = Callable[[], float | tuple[float, float]]
"""Evaluates the network as it is now on validation data: (loss, score), the score at most 1, higher is better; or the
loss alone, where ``Growth`` knows the ``chance_loss``."""

ROUNDING = 1e-6
"""A score that is above 1 by less is 1."""


def collect(
    evaluate: Evaluate, *, chance_loss: float | None, finite: bool, name: str = "evaluate"
) -> tuple[float, float]:
    """(loss, score) of what ``evaluate`` returns, averaged over the ranks; the arguments are those of :func:`checked`.

    Raises:
        ValueError: On every rank, if one of them got something else.
    """
    try:
        mine: tuple[float, float] | str = checked(evaluate(), chance_loss=chance_loss, finite=finite, name=name)
    except ValueError as error:
        if ranks.world_size() == 1:
            raise
        mine = str(error)
    results = ranks.gather(mine)
    pairs = [result for result in results if not isinstance(result, str)]
    if len(pairs) < len(results):
        raise ValueError(next(result for result in results if isinstance(result, str)))
    return sum(loss for loss, _ in pairs) / len(pairs), sum(score for _, score in pairs) / len(pairs)


def checked(result: Any, *, chance_loss: float | None, finite: bool, name: str = "evaluate") -> tuple[float, float]:
    """``result`` as (loss, score); the score of a loss alone is 1 − loss / chance_loss.

    Args:
        result: What ``evaluate()`` returned.
        chance_loss: Loss of a constant guess, if ``evaluate()`` returns losses alone.
        finite: Whether loss and score must be finite; otherwise one that is not counts as divergence.
        name: What the user knows the function by.

    Raises:
        ValueError: If it is anything else.
    """
    loss, score = _loss_and_score(result, chance_loss, name)
    if not (math.isfinite(loss) and score > -math.inf):  # a score of NaN, too, is not above anything
        if not finite:
            return loss, score if score <= 1 else math.nan
        raise ValueError(
            f"{name}() returned the loss {loss} and the score {score}, and no good state is left to go back to; check "
            "the data and the model, or build Growth after the first epoch"
        )
    if score > 1 + ROUNDING:
        text, number = (_TOO_HIGH, score) if chance_loss is None else (_NEGATIVE, loss)
        raise ValueError(text.format(name=name, number=number))
    return loss, min(score, 1.0)


def _loss_and_score(result: Any, chance_loss: float | None, name: str) -> tuple[float, float]:
    try:
        numbers = _numbers(result)
    except (TypeError, ValueError, RuntimeError):
        numbers = []
    match numbers:
        case [loss, score] if chance_loss is None:
            return loss, score
        case [loss] if chance_loss is not None:
            return loss, 1 - loss / chance_loss
        case [_, _]:
            raise ValueError(
                f"{name}() must return the loss alone where Growth got a chance_loss, which makes the score of it; got "
                f"{result!r}. Return the loss alone, or build Growth without chance_loss"
            )
        case [loss]:
            raise ValueError(
                f"{name}() must return a pair (loss, score), or Growth must know what a loss is worth; got the loss "
                f"{loss} alone. Give Growth(..., chance_loss=) the loss of a constant guess: the entropy of the "
                "classes for a cross-entropy, the variance of the targets for a mean squared error"
            )
    raise ValueError(
        f"{name}() must return a pair of numbers, (loss, score), or a loss alone; got {result!r}. Does it end with a "
        "return?"
    )


def _numbers(result: Any) -> list[float]:
    try:
        return [float(value) for value in result]
    except TypeError:  # not a sequence
        return [float(result)]


_TOO_HIGH = (
    "{name}() must return a score of at most 1, higher is better, got {number}. If it is in percent, divide it by 100; "
    "if it is an error m, where lower is better, give 1 - m / (m of a constant guess); in place of a perplexity return "
    "the loss alone and give Growth(..., chance_loss=)"
)
_NEGATIVE = (
    "{name}() must return a loss of 0 or more where it returns a loss alone, got {number}; for a loss that can fall "
    "below 0 return (loss, score) with a score of at most 1, and build Growth without chance_loss"
)


def training_loss(value: Any) -> float | None:
    """The training loss that a user gives, as a number; ``None`` stays.

    Raises:
        ValueError: If it is no number.
    """
    try:
        return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"train_loss is the mean training loss of the interval, a number; got {value!r}") from error


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """What is drawn inside does not count: the order of the data must not depend on how many seeds are measured."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        yield
