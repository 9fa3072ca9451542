"""Calling the user's ``evaluate()``: what it may return, and that it leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.growth import ranks

Evaluate = Callable[[], tuple[float, float]]
"""Evaluates the network as it is now on validation data: (loss, score), the score in [0, 1], higher is better."""


def collect(evaluate: Evaluate, *, finite: bool, name: str = "evaluate") -> tuple[float, float]:
    """(loss, score) as ``evaluate`` returns them, averaged over the ranks; the arguments are those of :func:`checked`.

    Raises:
        ValueError: On every rank, if one of them got something else.
    """
    try:
        mine: tuple[float, float] | str = checked(evaluate(), finite=finite, name=name)
    except ValueError as error:
        if ranks.world_size() == 1:
            raise
        mine = str(error)
    results = ranks.gather(mine)
    pairs = [result for result in results if not isinstance(result, str)]
    if len(pairs) < len(results):
        raise ValueError(next(result for result in results if isinstance(result, str)))
    return sum(loss for loss, _ in pairs) / len(pairs), sum(score for _, score in pairs) / len(pairs)


def checked(result: Any, *, finite: bool, name: str = "evaluate") -> tuple[float, float]:
    """``result`` as (loss, score).

    Args:
        result: What ``evaluate()`` returned.
        finite: Whether the loss must be finite; otherwise a loss that is not counts as divergence, with a score of 0 if
            it has none.
        name: What the user knows the function by.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        loss, score = (float(value) for value in result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name}() must return a pair of numbers, (loss, score); got {result!r}. Does it end with a return?"
        ) from error
    if not finite and not math.isfinite(loss):
        return loss, score if 0 <= score <= 1 else 0.0
    if not math.isfinite(loss):
        raise ValueError(
            f"{name}() returned the loss {loss}, and no good state is left to go back to; check the data and the "
            "model, or build Growth after the first epoch"
        )
    if not 0 <= score <= 1:
        raise ValueError(
            f"{name}() must return a score in [0, 1], higher is better, got {score}; give accuracy as a share, and "
            "map an unbounded measure m to the range, as exp(-m) does for a loss"
        )
    return loss, score


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
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """No gradients inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """What is drawn inside does not count: the order of the data must not depend on how many seeds are measured."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        yield
