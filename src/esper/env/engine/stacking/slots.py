"""A slot of many hosts: the hosts that hold the same blueprint run together, and join the others again.

Two functions of our own carry the rows to and fro, so that a slot costs two passes over its activation however many
blueprints it holds, and so that a host which is not concerned is not touched: not even a NaN gets across.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from esper.env.engine.stacking.layers import is_folded
from esper.env.engine.stacking.template import Template
from esper.env.engine.stacking.values import Stacked
from esper.growth.blueprints import SlotSpec


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows ``[n, N, ...]`` of ``[K, N, ...]``, in the same order of memory."""
    if x.dim() > 1 and is_folded(x):
        return x.transpose(0, 1).index_select(1, rows).transpose(0, 1)
    return x.index_select(0, rows)


def _add_rows(x: Tensor, rows: Tensor, part: Tensor) -> None:
    """``x[rows] += part`` for distinct rows, in either order of memory."""
    if is_folded(x):
        x.transpose(0, 1).index_add_(1, rows, part.transpose(0, 1))
    else:
        x.index_add_(0, rows, part)


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """``[n]`` → ``[n, 1, ...]``."""
    return values.view(-1, *(1,) * (like.dim() - 1))


class _TakeGroups(Function):
    """``h [K, ...]`` → the rows of each group. Only rows that are felt send a gradient back."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
        ctx.groups = groups
        ctx.like = torch.empty_like(h, device="meta")
        return tuple(take_rows(h, group.rows) for group in groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = torch.zeros_like(ctx.like, device=gradients[0].device)
        for group, gradient in zip(ctx.groups, gradients, strict=True):
            if group.felt is None:
                _add_rows(total, group.rows, gradient)
            elif len(group.felt):
                _add_rows(total, group.rows[group.felt], take_rows(gradient, group.felt))
        return total, None


class _JoinGroups(Function):
    """``h + alpha · effect`` in the rows of each group; isolated rows stay h, and their effect gets h's gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, groups: Sequence[Group], *effects: Tensor) -> Tensor:
        ctx.groups = groups
        joined = h.clone()
        for group, effect in zip(groups, effects, strict=True):
            if group.felt is None:
                _add_rows(joined, group.rows, _spread(group.alpha, effect) * effect)
            elif len(group.felt):
                part = take_rows(effect, group.felt)
                _add_rows(joined, group.rows[group.felt], _spread(group.alpha[group.felt], part) * part)
        return joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        parts = (take_rows(gradient, group.rows) for group in ctx.groups)
        return gradient, None, *(p * _spread(g.alpha, p) for p, g in zip(parts, ctx.groups, strict=True))


@dataclass
class Group:
    """The hosts that hold one blueprint in one slot.

    Args:
        blueprint: The blueprint, stacked.
        parameters: Its parameters, then the gate's weight and bias, ``[n, ...]`` each.
        rows: Which hosts they are, ``[n]``, grouped by style.
        styles: Number of them that add, that multiply and that are gated.
        alpha: How much is blended in, ``[n]``; 1 for isolated rows.
        felt: Which of the n rows are blended in, where not all are; the others learn in isolation.
    """

    blueprint: Template
    parameters: list[Stacked]
    rows: Tensor
    styles: tuple[int, int, int]
    alpha: Tensor
    felt: Tensor | None = None

    def effect(self, h: Tensor, spec: SlotSpec) -> Tensor:
        """What the seeds add to their slot's output ``h [n, N, ...]`` at alpha 1."""
        *parameters, weight, bias = self.parameters
        self.blueprint.bind(parameters)
        delta: Tensor = self.blueprint(Stacked(h)).data
        adding, multiplying, gated = self.styles
        if not multiplying and not gated:
            return delta
        if not adding and not gated:
            return delta * h
        deltas, hs = delta.split(self.styles), h.split(self.styles)
        parts = [deltas[0], deltas[1] * hs[1]]
        if gated:
            w, b = (p.data[adding + multiplying :] for p in (weight, bias))
            parts.append(torch.sigmoid(hs[2] * _per_channel(w, spec) + _per_channel(b, spec)) * deltas[2])
        return torch.cat([part for part in parts if len(part)])


def _per_channel(values: Tensor, spec: SlotSpec) -> Tensor:
    """``[n, C]`` so that it broadcasts over ``[n, N, ...]``."""
    if spec.kind == "image":
        return values[:, None, :, None, None]
    return values.view(len(values), *(1,) * (len(spec.spatial) + 1), -1)


@dataclass
class Measurement:
    """Root mean squares of one batch at one slot, a value a host."""

    activation: Tensor
    """``[K]``"""
    effects: list[Tensor]
    """``[n]`` of every group."""
    gradient: Tensor | None = None
    """``[K]``, once the backward pass is done."""


def rms_per_row(x: Tensor) -> Tensor:
    """``[K, ...]`` → ``[K]``."""
    flat = x.detach().float()
    return flat.square().mean(tuple(range(1, x.dim()))).sqrt()


class JoinedSlot:
    """What happens at one slot in a forward pass.

    Args:
        spec: What the slot carries.
        groups: The seeds that take part.
    """

    def __init__(self, spec: SlotSpec, groups: Sequence[Group]) -> None:
        self.spec = spec
        self.groups = list(groups)
        self.measurement: Measurement | None = None

    def __call__(self, h: Tensor, *, measure: bool = False) -> Tensor:
        """``h [K, N, ...]`` with the seeds' effects."""
        effects: list[Tensor] = []
        joined = h
        if self.groups:
            taken = _TakeGroups.apply(h, self.groups)
            effects = [group.effect(part, self.spec) for group, part in zip(self.groups, taken, strict=True)]
            joined = _JoinGroups.apply(h, self.groups, *effects)
        if measure:
            self._measure(h, effects, joined)
        return joined

    def _measure(self, h: Tensor, effects: Sequence[Tensor], joined: Tensor) -> None:
        measurement = Measurement(rms_per_row(h), [rms_per_row(effect) for effect in effects])
        self.measurement = measurement

        def keep(gradient: Tensor) -> None:
            measurement.gradient = rms_per_row(gradient)

        joined.register_hook(keep)


Join = Callable[[Tensor], Tensor]
