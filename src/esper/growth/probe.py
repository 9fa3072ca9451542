"""Follows a training loop that Esper does not run: counts its steps and measures a batch now and then."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.network.growing_network import GrowingNetwork


class Probe:
    """Measures the last batch of every interval, through hooks on the optimizer's step.

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
        self._optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._in_step = False
        self._scale = 1.0  # of the loss, at the latest measured step
        self._at_start: list[Tensor | None] = []  # gradients at the slots when measuring began
        self._norms: dict[str, float] | None = None  # of the host's parameters, when the interval began
        self._warned = False

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = True

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._in_step:  # hooks run twice where a subclass calls the step of its parent
            return
        self._in_step = False
        if self._open is not None:
            self._scale = _loss_scale()
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
            self._at_start = [slot.statistics.slot_gradient_rms for slot in self._network.slots]

    def _stop(self) -> None:
        if self._open is not None:
            stack, self._open = self._open, None
            stack.close()
            self._eager.close()
            self._unscale()

    def _unscale(self) -> None:
        """Gradients of parameters are unscaled before the step; those at the slots were seen in the backward pass."""
        for slot, at_start in zip(self._network.slots, self._at_start, strict=True):
            seen = slot.statistics.slot_gradient_rms
            if seen is not None and seen is not at_start:
                slot.statistics.slot_gradient_rms = seen / self._scale

    def check_training(self) -> None:
        """Whether the optimizer is what trains the host; call at the end of an interval.

        Raises:
            RuntimeError: If its parameters have changed without a step of its own.
        """
        norms = self._parameter_norms()
        before = norms if self._norms is None else self._norms
        changed = [name for name, norm in norms.items() if norm != before.get(name, norm) and math.isfinite(norm)]
        ours = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        own = {name for name, p in self._network.model.named_parameters() if id(p) in ours}
        name = type(self._optimizer).__name__
        if self.steps == 0 and own.intersection(changed):
            raise RuntimeError(
                f"{changed[0]} and others have changed since the last step of growth, but the {name} that Growth was "
                "given has made no step: something else trains the host, and seeds do not learn with it. Train with "
                f"that {name} (growth.optimizer; for other settings change its param_groups), or, to go on with "
                "another one, keep growth.grown_model(), call growth.remove() and build a new esper.Growth with it. If "
                "you have loaded weights, train before the next step of growth"
            )
        strangers = [name for name in changed if name not in own]
        if strangers and not self._warned:
            self._warned = True
            warnings.warn(
                f"something else than the {name} that Growth was given trains {len(strangers)} of the host's "
                f"parameters ({', '.join(strangers[:3])}{', …' if len(strangers) > 3 else ''}). Growth takes one "
                "optimizer: it trains all seeds, and when the governor rolls back, weights and this optimizer's state "
                "go back, but not the state of any other",
                stacklevel=3,
            )

    def _parameter_norms(self) -> dict[str, float]:
        named = {name: p for name, p in self._network.model.named_parameters() if p.requires_grad}
        wide = [torch.promote_types(p.dtype, torch.float32) for p in named.values()]
        norms = [
            torch.linalg.vector_norm(p.detach(), dtype=d).double() for p, d in zip(named.values(), wide, strict=True)
        ]
        return dict(zip(named, torch.stack([n.cpu() for n in norms]).tolist() if norms else [], strict=True))

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
        self._norms = self._parameter_norms()
        self._start_if_due()

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        self._stop()
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Where in the interval the run is."""
        return {"steps": self.steps, "expected": self._expected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what :meth:`state_dict` saved."""
        self._stop()
        self.steps, self._expected = state["steps"], state["expected"]
        self._norms = None  # the weights are loaded after this
        self._start_if_due()


def _loss_scale() -> float:
    """By what the loss was multiplied before the step that is running now: that of the ``GradScaler`` that called it.

    A scaler leaves no trace on the optimizer, so it is looked for among the callers.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "step" else None
        if isinstance(caller, torch.amp.GradScaler):
            return caller.get_scale()
    return 1.0


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
