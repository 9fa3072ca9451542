"""The gradients of isolated seeds, kept apart until the optimizer's step.

A seed in TRAINING must not be felt by its host. Its parameters are parameters of the model, so a loop that clips over
``model.parameters()`` would count their gradients into the norm and scale the host's own down by it. Hence an isolated
parameter shows no gradient between the backward pass and the optimizer's step: it is taken out of ``.grad`` as soon as
it has arrived, and put back for the step itself (where the step is given a closure, as soon as that has run). What the
loop does to the host's gradients in between, scaling them back (``GradScaler``) or down (clipping), is done to the
seed's by the same factor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


@dataclass
class _Held:
    """What is held of one isolated parameter."""

    parameter: nn.Parameter
    handle: RemovableHandle
    gradient: Tensor | None = None
    """Accumulated since the last step."""
    latest: Tensor | None = None
    """The gradient of the last step, for those who measure after it."""
    witnessed: Tensor | None = None
    """The witness's gradient when this one arrived."""


class IsolatedGradients:
    """Holds the gradients of isolated parameters of one optimizer.

    Whether gradients have been cleared since the last backward pass is told by a *witness*: the smallest parameter of
    the host that had a gradient at the last step, or, before the first step, that is trained. If its gradient is gone,
    or another tensor, or zero, so are those held here. In the rare loop that clears gradients without a step, in place
    (``set_to_none=False``), and in compiled code, this cannot be told, and what was to be cleared is added.

    Args:
        optimizer: What trains host and seeds.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._held: dict[int, _Held] = {}
        self._witness: nn.Parameter | None = None
        self._witness_handle: RemovableHandle | None = None
        self._seen: Tensor | None = None
        """A copy of the witness's gradient after the backward pass."""
        self._handles = [
            optimizer.register_step_pre_hook(self._join),
            optimizer.register_step_post_hook(self._part),
        ]

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """From now on keep the gradients of exactly these parameters apart."""
        wanted = {id(p): p for p in parameters}
        for key in [key for key in self._held if key not in wanted]:
            held = self._held.pop(key)
            held.handle.remove()
            held.parameter.grad = held.gradient  # it acts now, and what it has learned from counts
        for key, parameter in wanted.items():
            if key not in self._held:
                handle = parameter.register_post_accumulate_grad_hook(_weakly(self._take))
                self._held[key] = _Held(parameter, handle)
        if self._held and self._witness is None:
            self._watch(self._best_witness())

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The gradient of a parameter, wherever it is; of the last step if none has arrived since."""
        held = self._held.get(id(parameter))
        if held is None or parameter.grad is not None:
            return parameter.grad
        return held.latest if held.gradient is None else held.gradient

    def close(self) -> None:
        """Take all hooks off."""
        self.hold(())
        self._watch(None)
        for handle in self._handles:
            handle.remove()

    # ------------------------------------------------------------------------------------------- backward

    def _take(self, parameter: Tensor) -> None:
        """A gradient has arrived."""
        held = self._held[id(parameter)]
        if held.gradient is None or self._cleared(held):
            held.gradient = parameter.grad
        else:
            assert parameter.grad is not None
            held.gradient = held.gradient + parameter.grad
        held.witnessed = None if self._witness is None else self._witness.grad
        parameter.grad = None

    def _cleared(self, held: _Held) -> bool:
        if self._witness is None:
            return False
        now = self._witness.grad
        if now is None or (held.witnessed is not None and now is not held.witnessed):
            return True
        return not bool(now.any())

    # ------------------------------------------------------------------------------------------- the step

    def _join(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Before the step: put the gradients back, at once or when the step's own closure has brought them."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._put_back()
            return None

        def joined() -> Any:
            loss = closure()
            self._put_back()
            return loss

        return args[:1], {**kwargs, "closure": joined}

    def _put_back(self) -> None:
        factor = self._factor() if self._held else None
        for held in self._held.values():
            gradient, held.gradient = held.gradient, None
            if gradient is not None and factor is not None:
                gradient = torch.nan_to_num(gradient * factor.to(gradient), nan=0.0, posinf=0.0, neginf=0.0)
            if gradient is not None:
                held.parameter.grad = gradient

    def _part(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for held in self._held.values():
            if held.parameter.grad is not None:
                held.latest, held.parameter.grad = held.parameter.grad, None
            held.gradient = None
        if self._witness is None or self._witness.grad is None:
            self._watch(self._best_witness())

    def _best_witness(self) -> nn.Parameter | None:
        """The smallest parameter that is not held and had a gradient in this step, or may have one where none had."""
        own = [p for group in self._optimizer.param_groups for p in group["params"] if id(p) not in self._held]
        trained = [p for p in own if p.grad is not None] or [p for p in own if p.requires_grad]
        return min(trained, key=lambda p: p.numel(), default=None)

    def _watch(self, witness: nn.Parameter | None) -> None:
        if witness is self._witness:
            return
        if self._witness_handle is not None:
            self._witness_handle.remove()
        self._seen = None
        self._witness = witness
        self._witness_handle = None
        if witness is not None:
            self._witness_handle = witness.register_post_accumulate_grad_hook(_weakly(self._see))

    def _see(self, witness: Tensor) -> None:
        if witness.grad is not None:
            self._seen = witness.grad.clone()

    def _factor(self) -> Tensor | None:
        """By how much the host's gradients have been scaled since the backward pass; ``None`` if they are as it left.

        The projection ⟨now, then⟩ / ⟨then, then⟩ of the witness's gradient, 0-dim; what clips each number by itself has
        no one factor, and this is its mean.
        """
        now = None if self._witness is None else self._witness.grad
        if now is None or self._seen is None or torch.equal(now, self._seen):
            return None
        now, then = now.double(), self._seen.double()
        factor = (now * then).sum() / (then * then).sum()
        return torch.where(torch.isfinite(factor), factor, 1.0)


def _weakly(method: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """A hook on a parameter that does not keep its owner alive: the garbage collector does not see through tensors."""
    reference = weakref.WeakMethod(method)

    def call(parameter: Tensor) -> None:
        owner = reference()
        if owner is not None:
            owner(parameter)

    return call
