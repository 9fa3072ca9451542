"""A step that fails leaves no trace: what it has changed so far is taken back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from esper.network.governor import Governor
from esper.network.growing_network import GrowingNetwork
from esper.network.history import History


@contextmanager
def all_or_nothing() -> Iterator[ExitStack]:
    """If the block raises, what has been registered in the stack is called, last first; otherwise nothing is.

    Example:
        >>> values = [1]
        >>> try:
        ...     with all_or_nothing() as undo:
        ...         values.append(2)
        ...         _ = undo.callback(values.pop)
        ...         values.append(1 / 0)
        ... except ZeroDivisionError:
        ...     print(values)
        [1]
    """
    with ExitStack() as undo:
        yield undo
        undo.pop_all()


def keep_state(undo: ExitStack, network: GrowingNetwork, run: History, governor: Governor | None) -> None:
    """Register that the state of all of these becomes what it is now; weights and seeds are not among them."""
    if governor is not None:
        undo.callback(governor.load_state_dict, governor.state_dict())
    undo.callback(vars(run).update, {name: copy.copy(value) for name, value in vars(run).items()})
    undo.callback(setattr, network, "host_gradient_rms", network.host_gradient_rms)
    for slot in network.slots:
        undo.callback(setattr, slot, "life", copy.copy(slot.life))
        undo.callback(setattr, slot, "statistics", copy.copy(slot.statistics))
