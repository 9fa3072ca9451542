"""The governor of a host in a stack: the same judgement; the snapshot is a few rows of the pools."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.env.engine.stacking.pool import Saved
from esper.env.engine.stacking.stack import HostStack, StackedRun, seeds_of
from esper.network.governor import Governor
from esper.network.nursery import Nursery
from esper.network.seed import Seed
from esper.network.slot import Life, Slot
from esper.observation import SlotStatistics


@dataclass(frozen=True)
class SlotSnapshot:
    """A slot as it was: its state, and what it held, with the rows of their parameters, by blueprint."""

    life: Life
    statistics: SlotStatistics[Tensor]
    is_grown: bool
    """Whether it held a seed, not candidates."""
    held: dict[int, tuple[Seed, Saved]]


@dataclass(frozen=True)
class RunSnapshot:
    """A run as it was. Nothing in it is shared with the run but the seeds' modules, whose weights lie beside them."""

    host: Saved
    host_gradient_rms: Tensor | None
    slots: list[SlotSnapshot]


class StackedGovernor(Governor):
    """Watches one run of a stack; see :class:`~esper.network.governor.Governor`."""

    def __init__(self, run: StackedRun, stack: HostStack) -> None:
        self._run, self._stack = run, stack
        super().__init__(run.network)

    def take_snapshot(self) -> None:
        """Remember the present state as good."""
        run = self._run
        self._stack.settle_seeds(run)
        slots = [self._slot_snapshot(index, slot) for index, slot in enumerate(run.network.slots)]
        self._good = RunSnapshot(run.host.save(), run.network.host_gradient_rms, slots)

    def _slot_snapshot(self, index: int, slot: Slot) -> SlotSnapshot:
        held = {b: (seed, self._run.seeds[index, b].save()) for b, seed in seeds_of(slot).items()}
        return SlotSnapshot(replace(slot.life), replace(slot.statistics), slot.seed is not None, held)

    def _seeds_are_finite(self) -> bool:
        slots = enumerate(self._run.network.slots)
        rows = [self._run.seeds[i, slot.life.blueprint].weights() for i, slot in slots if slot.seed is not None]
        return all(bool(torch.isfinite(row).all()) for row in rows)

    def _host_is_finite(self) -> bool:
        return bool(torch.isfinite(self._run.host.weights()).all())

    def _restore(self) -> None:
        run = self._run
        run.host.restore(self._good.host)
        run.network.host_gradient_rms = self._good.host_gradient_rms
        for slot, good in zip(run.network.slots, self._good.slots, strict=True):
            slot.life, slot.statistics = replace(good.life), replace(good.statistics)
            seeds = {blueprint: seed for blueprint, (seed, _) in good.held.items()}
            slot.seed = seeds[good.life.blueprint] if good.is_grown else None
            slot.nursery = Nursery(seeds) if seeds and not good.is_grown else None
            slot.refresh()
        self._stack.settle_seeds(run)
        for index, good in enumerate(self._good.slots):
            for blueprint, (_, weights) in good.held.items():
                run.seeds[index, blueprint].restore(weights)
