"""Rates that change over a training: constant, along a line or a cosine, or as a function of your own says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from esper.extensions import look_up

Schedule = Annotated[
    float | str | Callable[[float], float],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="RATE",
        instance_from_str=lambda words: _number(words[0]),
        is_instance=lambda value: value is not None,
        str_from_instance=lambda schedule: [str(plain(schedule))],
    ),
]
"""How a rate changes over a training.

* A number: it stays.
* ``"linear:3e-4"``: from there to zero along a line; ``"linear:3e-4:1e-5"``: to 1e-5.
* ``"cosine:3e-4"``, ``"cosine:3e-4:1e-5"``: along half a cosine (Loshchilov and Hutter 2017,
  https://arxiv.org/abs/1608.03983).
* A function of what remains of the training, from 1 at the first update down towards 0 at the last, as in
  Stable-Baselines3; ``"module:function"`` names one.
"""

_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda remaining: remaining,
    "cosine": lambda remaining: (1 + math.cos(math.pi * (1 - remaining))) / 2,
}
"""Share of the way back from the end to the start."""


def rate(name: str, schedule: Schedule, remaining: float, most: float = math.inf) -> float:
    """The value of a schedule.

    Args:
        name: Of the option, for the message.
        schedule: See :data:`Schedule`.
        remaining: Of the training, from 1 to 0.
        most: The greatest value that makes sense.

    Raises:
        ValueError: For a function that is not there, or gives no number from 0 to ``most``.

    Example:
        >>> [rate("clip", schedule, 0.5) for schedule in (0.25, "linear:0.25", "cosine:0.5:0.25")]
        [0.25, 0.125, 0.375]
    """
    if (line := _line(schedule)) is not None:
        shape, start, end = line
        return end + (start - end) * shape(remaining)
    value = (schedule if callable(schedule) else _function(name, str(schedule)))(remaining)
    if not (isinstance(value, int | float) and 0 <= value <= most):
        raise ValueError(
            f"{name}: expected a number from 0 to {most:g} from {plain(schedule)}({remaining:g}), got {value!r}"
        )
    return float(value)


def check(name: str, schedule: Schedule, most: float = math.inf) -> None:
    """See before the training that a schedule makes sense; what a function gives is seen when it is asked.

    Raises:
        ValueError: For anything but a schedule from a number above 0 to one of at least 0, neither above ``most``.
    """
    try:
        line = _line(schedule)
        if line is None or (0 < line[1] <= most and 0 <= line[2] <= most and math.isfinite(line[1])):
            return
    except ValueError:
        pass
    limit = "above 0" if math.isinf(most) else f"above 0 and up to {most:g}"
    raise ValueError(
        f"{name}: expected a number {limit}, or how it changes: 'linear:START:END' or 'cosine:START:END' (without END: "
        f"to zero), a function of what remains of the training, or 'module:function'; got {schedule!r}"
    )


def _line(schedule: Schedule) -> tuple[Callable[[float], float], float, float] | None:
    """Shape, start and end; ``None`` for a function."""
    if callable(schedule):
        return None
    if not isinstance(schedule, str):
        return (lambda remaining: 0.0), schedule, schedule
    shape, *ends = schedule.split(":")
    if shape in _SHAPES and len(ends) in (1, 2):
        return _SHAPES[shape], float(ends[0]), float(ends[1]) if len(ends) == 2 else 0.0
    if shape and len(ends) == 1 and isinstance(_number(ends[0]), str):
        return None
    raise ValueError(f"not a schedule: {schedule!r}")


def plain(schedule: Any) -> Any:
    """A schedule as plain data: a function by its name, ``"module:function"``; anything else as it is."""
    if not callable(schedule):
        return schedule
    return f"{schedule.__module__}:{getattr(schedule, '__qualname__', type(schedule).__qualname__)}"


def plain_fields(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The ``dict_factory`` of ``dataclasses.asdict`` for options among which there are schedules."""
    return {name: plain(value) for name, value in fields}


def _function(name: str, path: str) -> Callable[[float], float]:
    try:
        function: Callable[[float], float] = look_up(path)
        return function
    except ValueError as error:
        raise ValueError(
            f"{name}: expected module:function, got '{path}': {error}; a function that cannot be imported by its name "
            "is to be given itself"
        ) from error


def _number(word: str) -> float | str:
    """A word of the command line: a number, if it is one."""
    try:
        return float(word)
    except ValueError:
        return word
