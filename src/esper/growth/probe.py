"""Follows a training loop that Esper does not run: counts its steps and measures a batch now and then."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from esper.network.growing_network import GrowingNetwork


class Probe:
    """Measures the last batch of every interval, through a hook on the optimizer's step.

    An interval is taken to be as long as the one before it. In the first interval the batches 1, 2, 4, 8, … are
    measured, so that the latest measurement is never older than half the interval. A measured batch runs without
    ``torch.compile``, because recorders would otherwise have to be compiled in and out. A run that is given up in a
    measured batch ends that when it is garbage collected.

    Args:
        network: The growing network.
        optimizer: What trains it.
    """

    def __init__(self, network: GrowingNetwork, optimizer: Optimizer) -> None:
        self._network = network
        self.steps = 0
        """Optimizer steps since the interval began."""
        self._expected: int | None = None
        self._open: ExitStack | None = None
        self._eager = ExitStack()  # apart from the recorders: it must not keep the network, and so this probe, alive
        weakref.finalize(self, self._eager.close)
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stop()
        self.steps += 1
        self._start_if_due()

    def _start_if_due(self) -> None:
        batch = self.steps + 1
        due = batch == self._expected if self._expected else batch & (batch - 1) == 0
        if due and self._open is None:
            self._open = ExitStack()
            self._eager.enter_context(uncompiled())
            self._open.enter_context(self._network.measure())

    def _stop(self) -> None:
        if self._open is not None:
            stack, self._open = self._open, None
            stack.close()
            self._eager.close()

    def end_interval(self) -> None:
        """Call before anything is evaluated."""
        self._stop()

    def resume_interval(self) -> None:
        """Call when the interval goes on after all."""
        self._start_if_due()

    def begin_interval(self) -> None:
        """Call when the next batch is one of training."""
        self._expected = self.steps or self._expected
        self.steps = 0
        self._start_if_due()

    def remove(self) -> None:
        """Take the hook off the optimizer."""
        self._stop()
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Where in the interval the run is."""
        return {"steps": self.steps, "expected": self._expected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state_dict` saved."""
        self._stop()
        self.steps, self._expected = state["steps"], state["expected"]
        self._start_if_due()


_open: list[ExitStack] = []
"""The eager stance, once for each block of :func:`uncompiled` that is open; blocks may end in any order."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled modules run as they were written; does nothing where nothing has been compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    if not _open:
        stance = ExitStack()
        stance.enter_context(torch.compiler.set_stance("force_eager"))
        _open.append(stance)
    else:
        _open.append(_open[0])
    try:
        yield
    finally:
        stance = _open.pop()
        if not _open:
            stance.close()


def compile_afresh() -> None:
    """Forget compiled code: a compiled module would go on as it was before its structure changed."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
