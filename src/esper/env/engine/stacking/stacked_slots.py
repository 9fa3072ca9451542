"""A slot of many hosts: the hosts that hold the same blueprint run together, and join the others again.

Two functions of our own carry the rows to and fro, so that a slot costs few passes over its activation however many
blueprints it holds, and so that a host which is not concerned is not touched: not even a NaN gets across.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from esper.env.engine.stacking.memory_format import add_to_rows, cat_rows, pick_rows, relaid, take_rows
from esper.env.engine.stacking.pool import ParameterPool
from esper.env.engine.stacking.stacked_tensor import Stacked
from esper.env.engine.stacking.template import Template
from esper.network.blueprints import SlotSpec
from esper.network.seed import isolated_gradient


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """``[n]`` → ``[n, 1, ...]``."""
    return values.view(-1, *(1,) * (like.dim() - 1))


class _Branch(Function):
    """``h [K, ...]`` → h, and a copy of the rows of each group. Only rows that are felt send a gradient back."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, groups: Sequence[Group]) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return h.view_as(h), *(take_rows(h, group.rows) for group in groups)

    @staticmethod
    def backward(ctx: Any, straight: Tensor, *branches: Tensor) -> tuple[Tensor, None]:
        felt = [(group, branch) for group, branch in zip(ctx.groups, branches, strict=True) if len(group.felt)]
        total = straight.clone() if felt else straight
        for group, branch in felt:
            add_to_rows(total, group.felt_rows, pick_rows(branch, group.felt))
        return total, None


class _Join(Function):
    """``h + alpha · effect`` in the rows that are felt. The others stay h, and their effect learns in isolation."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, groups: Sequence[Group], *effects: Tensor) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(h, *effects)
        joined = h.clone()
        for group, effect in zip(groups, effects, strict=True):
            if len(group.felt):
                part = pick_rows(effect, group.felt)
                add_to_rows(joined, group.felt_rows, part if group.full else part * _spread(group.alpha, part))
        return joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        h, *effects = ctx.saved_tensors
        parts = [g.effect_gradient(gradient, h, e) for g, e in zip(ctx.groups, effects, strict=True)]
        return gradient, None, *parts


class Group:
    """The hosts that hold one blueprint in one slot, as a seed or as a candidate of an audition.

    Args:
        blueprint: The blueprint, stacked.
        parameters: Its parameters, then the gate's weight and bias, ``[n, ...]`` each.
        rows: Which hosts they are, ``[n]``, grouped by style.
        styles: Number of them that add, that multiply and that are gated.
        alphas: How much is blended in; ``None`` for seeds that learn in isolation.
        pool: Where the parameters live.
    """

    def __init__(
        self,
        blueprint: Template,
        parameters: list[Stacked],
        rows: Sequence[int],
        styles: tuple[int, int, int],
        alphas: Sequence[float | None],
        pool: ParameterPool,
    ) -> None:
        self.blueprint = blueprint
        self.pool = pool
        self.parameters = parameters
        self.styles = styles
        data = parameters[0].data
        felt = [i for i, alpha in enumerate(alphas) if alpha is not None]
        isolated = [i for i, alpha in enumerate(alphas) if alpha is None]
        self.rows, self.felt, self.isolated = (
            torch.tensor(indices, dtype=torch.int64, device=data.device) for indices in (rows, felt, isolated)
        )
        self.felt_rows, self.isolated_rows = self.rows[self.felt], self.rows[self.isolated]
        self.alpha = torch.tensor([a for a in alphas if a is not None], dtype=data.dtype, device=data.device)
        self.full = all(alpha == 1.0 for alpha in alphas if alpha is not None)

    def effect_gradient(self, gradient: Tensor, h: Tensor, effect: Tensor) -> Tensor:
        """The gradient at this group's effect ``[n, ...]``, given that at the slot's output ``[K, ...]``.

        It lies in memory as the effect does, so that sums over it run in the same order whichever seeds there are.
        """
        if not len(self.isolated):
            return relaid(self._felt_gradient(gradient), effect)
        alone = isolated_gradient(
            take_rows(gradient, self.isolated_rows),
            take_rows(h, self.isolated_rows),
            pick_rows(effect, self.isolated),
            lambda x: _spread(rms_per_row(x), x),
        )
        if not len(self.felt):
            return relaid(alone, effect)
        total = torch.empty_like(effect)
        total[self.isolated] = alone
        total[self.felt] = self._felt_gradient(gradient)
        return total

    def _felt_gradient(self, gradient: Tensor) -> Tensor:
        part = take_rows(gradient, self.felt_rows)
        return part if self.full else part.mul_(_spread(self.alpha, part))

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
            parts.append(deltas[2] * torch.sigmoid(hs[2] * _per_channel(w, spec) + _per_channel(b, spec)))
        return cat_rows([part for part in parts if len(part)])


def _per_channel(values: Tensor, spec: SlotSpec) -> Tensor:
    """``[n, C]`` so that it broadcasts over ``[n, N, ...]``."""
    if spec.kind == "image":
        return values[:, None, :, None, None]
    return values.view(len(values), *(1,) * (len(spec.spatial) + 1), -1)


@dataclass
class Measurement:
    """Root mean squares of one batch at one slot, one value per host."""

    activation: Tensor
    """``[K]``"""
    effects: list[Tensor]
    """``[n]`` of every group."""
    gradient: Tensor | None = None
    """``[K]``, once the backward pass is done."""


def rms_per_row(x: Tensor) -> Tensor:
    """``[K, N, ...]`` → ``[K]``; sample by sample, so that a row's sum has one order whatever the others are."""
    per_sample = x.detach().float().square().mean(tuple(range(2, x.dim())))
    return per_sample.contiguous().mean(1).sqrt()


class JoinedSlot:
    """What happens at one slot in a forward pass.

    Args:
        spec: What the slot carries.
        groups: The seeds that take part.
    """

    def __init__(self, spec: SlotSpec, groups: Sequence[Group]) -> None:
        self.spec = spec
        self.groups = list(groups)
        self.measuring = False
        self.measurement: Measurement | None = None

    def __call__(self, h: Tensor) -> Tensor:
        """``h [K, N, ...]`` with the seeds' effects."""
        effects: list[Tensor] = []
        joined = h
        if self.groups:
            straight, *taken = _Branch.apply(h, self.groups)
            effects = [group.effect(part, self.spec) for group, part in zip(self.groups, taken, strict=True)]
            joined = _Join.apply(straight, self.groups, *effects)
        if self.measuring:
            self._measure(h, effects, joined)
        return joined

    def _measure(self, h: Tensor, effects: Sequence[Tensor], joined: Tensor) -> None:
        measurement = Measurement(rms_per_row(h), [rms_per_row(effect) for effect in effects])
        self.measurement = measurement

        def keep(gradient: Tensor) -> None:
            measurement.gradient = rms_per_row(gradient)

        joined.register_hook(keep)
