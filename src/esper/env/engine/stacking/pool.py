"""The parameters of many modules of one structure: one row of common storage each, with gradients and Adam state.

Running statistics lie among them; they have no gradient, so Adam leaves them as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from esper.env.engine.stacking.stacked_tensor import Stacked


@dataclass(eq=False)
class Member:
    """A module whose parameters live in a row of a pool; they are views of it, so both always agree.

    Args:
        parameters: The module's parameters and running statistics, by the pool's names; those it lacks stay zero in
            its row.
        learning_rate: Of its Adam.
    """

    parameters: Mapping[str, Tensor]
    learning_rate: float
    position: int = field(default=-1, init=False)
    """The row."""


@dataclass(frozen=True)
class Saved:
    """One row of a pool, as it was: weights and Adam's moments ``[P]``, steps taken."""

    weights: Tensor
    first_moments: Tensor
    second_moments: Tensor
    steps: Tensor


ROW_MULTIPLE = 16
"""Rows begin at multiples of so many numbers. On some processors a product rounds by where its factors lie, and the row
that a host has must not matter."""


class ParameterPool:
    """Rows of parameters ``[n, P]`` that come and go. Storage only ever grows, to the most rows there were at once.

    Args:
        shapes: Shape of every parameter by name; they lie in a row in this order.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], *, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = dict(shapes)
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(sizes)
        starts = itertools.accumulate(sizes[:-1], initial=0)
        self._places = dict(zip(self.shapes, zip(starts, sizes, strict=True), strict=True))
        self.members: list[Member] = []
        self.weights, self.gradients, self.first_moments, self.second_moments = (
            self._rows(0, torch.empty(0, dtype=dtype, device=device)) for _ in range(4)
        )
        self.steps = torch.zeros(0, device=device)
        self._leaves: dict[int, list[Stacked]] = {}

    def __len__(self) -> int:
        return len(self.members)

    # ------------------------------------------------------------------------------------------- coming and going

    def insert(self, member: Member, saved: Saved | None = None) -> None:
        """Take a module in: its parameters move here, with fresh Adam state (or with all of it as it was saved)."""
        position = len(self.members)
        self._reserve(position + 1)
        member.position = position
        self.members.append(member)
        for tensor in (self.weights, self.first_moments, self.second_moments, self.steps):
            tensor[position] = 0
        for name, parameter in member.parameters.items():
            self._view(self.weights, position, name).copy_(parameter.detach())
        if saved is not None:
            self.restore(member, saved)
        self._bind(member)

    def remove(self, members: Sequence[Member]) -> None:
        """Let modules go; their parameters become tensors of their own."""
        gone = set(map(id, members))
        for member in members:
            for parameter in member.parameters.values():
                parameter.data = parameter.data.clone()
        self._permute([m for m in self.members if id(m) not in gone])

    def arrange(self, first: Sequence[Member]) -> None:
        """Give these members the first rows, in this order."""
        chosen = set(map(id, first))
        self._permute([*first, *(m for m in self.members if id(m) not in chosen)])

    def _permute(self, members: list[Member]) -> None:
        moved = [i for i, member in enumerate(members) if member.position != i]
        if moved:
            source = torch.tensor([members[i].position for i in moved], device=self.weights.device)
            target = torch.tensor(moved, device=self.weights.device)
            for tensor in (self.weights, self.first_moments, self.second_moments, self.steps):
                tensor[target] = tensor[source]
        self.members = members
        for i in moved:
            members[i].position = i
            self._bind(members[i])

    def _reserve(self, rows: int) -> None:
        capacity = len(self.weights)
        if rows <= capacity:
            return
        capacity = max(rows, 2 * capacity)
        for name in ("weights", "gradients", "first_moments", "second_moments", "steps"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(capacity) if old.dim() == 1 else self._rows(capacity, old)
            new[: len(old)] = old
            setattr(self, name, new)
        self._leaves = {}
        for member in self.members:
            self._bind(member)

    def _rows(self, count: int, like: Tensor) -> Tensor:
        """Zeros ``[count, P]``; each row begins at a multiple of :data:`ROW_MULTIPLE`."""
        return like.new_zeros(count, -(-self.size // ROW_MULTIPLE) * ROW_MULTIPLE)[:, : self.size]

    def _bind(self, member: Member) -> None:
        for name, parameter in member.parameters.items():
            parameter.data = self._view(self.weights, member.position, name)

    def _view(self, storage: Tensor, position: int, name: str) -> Tensor:
        start, size = self._places[name]
        return storage[position, start : start + size].view(self.shapes[name])

    # ------------------------------------------------------------------------------------------- reading

    def leaves(self, rows: int) -> list[Stacked]:
        """The parameters of the first ``rows`` members, ``[rows, ...]`` each, as leaves of a graph."""
        if rows not in self._leaves:
            self._leaves[rows] = [self._leaf(rows, name) for name in self.shapes]
        return self._leaves[rows]

    def _leaf(self, rows: int, name: str) -> Stacked:
        start, size = self._places[name]
        columns = slice(start, start + size)
        return Stacked(self.weights[:rows, columns].view(rows, *self.shapes[name]).detach().requires_grad_())

    def gather_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Keep the gradients of :meth:`leaves`; ``None`` stands for zeros."""
        rows = next(len(g) for g in gradients if g is not None)
        sizes = (size for _, size in self._places.values())
        parts = [
            self.weights.new_zeros(rows, n) if g is None else g.flatten(1)
            for g, n in zip(gradients, sizes, strict=True)
        ]
        torch.cat(parts, 1, out=self.gradients[:rows])

    def selected(self, positions: Tensor) -> list[Stacked]:
        """Copies of the parameters in these rows ``[n]``, for a forward pass without gradients."""
        weights = self.weights.index_select(0, positions)
        columns = (weights[:, start : start + size] for start, size in self._places.values())
        return [Stacked(c.view(len(c), *s)) for c, s in zip(columns, self.shapes.values(), strict=True)]

    def gradient_rms(self, rows: int) -> Tensor:
        """Root mean square of the gradients of each of the first members, ``[rows]``."""
        sizes = [sum(p.numel() for p in m.parameters.values() if p.requires_grad) for m in self.members[:rows]]
        total = torch.linalg.vector_norm(self.gradients[:rows], dim=1)
        return total / torch.tensor(sizes, device=total.device, dtype=total.dtype).sqrt()

    def finite(self) -> Tensor:
        """Whether all parameters of each member are finite, bool ``[n]``."""
        return torch.isfinite(self.weights[: len(self)]).all(dim=1)

    # ------------------------------------------------------------------------------------------- saving a row

    def save(self, member: Member) -> Saved:
        """A copy of a member's row."""
        i = member.position
        state = (self.weights, self.first_moments, self.second_moments, self.steps)
        return Saved(*(tensor[i].clone() for tensor in state))

    def restore(self, member: Member, saved: Saved) -> None:
        """Write a member's row back."""
        i = member.position
        self.weights[i], self.first_moments[i] = saved.weights, saved.first_moments
        self.second_moments[i], self.steps[i] = saved.second_moments, saved.steps
