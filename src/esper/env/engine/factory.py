"""Which engine trains the hosts of a task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from esper.actions import ALL_BLUEPRINTS
from esper.env.engine.engine import Engine
from esper.env.engine.loop import LoopEngine
from esper.env.engine.stacked import StackedEngine
from esper.tasks import Task

EngineKind = Literal["auto", "stacked", "loop"]

ENGINE_KINDS: tuple[EngineKind, ...] = ("auto", "stacked", "loop")

_LOGGER = logging.getLogger(__name__)


def make_engine(
    task: Task, num_hosts: int, *, kind: EngineKind = "auto", blueprints: Sequence[str] = ALL_BLUEPRINTS
) -> Engine:
    """An engine for ``num_hosts`` hosts of a task.

    Args:
        task: What they learn.
        num_hosts: K.
        kind: ``"stacked"`` trains all hosts in one graph, ``"loop"`` one after the other; ``"auto"`` stacks where that
            is possible, and says so in the log where it is not.
        blueprints: Names of the blueprints that may be germinated.

    Raises:
        ValueError: For another kind; with ``"stacked"`` for a host that cannot be stacked.
    """
    if kind not in ENGINE_KINDS:
        raise ValueError(f"engine must be one of {', '.join(ENGINE_KINDS)}; got {kind!r}")
    if kind == "loop":
        return LoopEngine(task, num_hosts, blueprints)
    try:
        return StackedEngine(task, num_hosts, blueprints)
    except ValueError as error:
        if kind == "stacked":
            raise
        _LOGGER.warning("the hosts of task '%s' are trained one after the other: %s", task.name, error)
        return LoopEngine(task, num_hosts, blueprints)
