"""The governor of a host in a stack: the same judgement; the snapshot is a few rows of the pools."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.env.engine.stacking.pool import Saved
from esper.env.engine.stacking.stack import HostStack, Placed, StackedRun
from esper.network.governor import Governor
from esper.network.seed import Seed
from esper.network.slot import Life, Slot
from esper.observation import SlotStatistics


@dataclass(frozen=True)
class SlotSnapshot:
    """A slot as it was; its seed, if any, with the row that held its parameters."""

    life: Life
    statistics: SlotStatistics[Tensor]
    placed: Placed | None
    weights: Saved | None


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
        slots = [self._slot_snapshot(slot, run.seeds.get(index)) for index, slot in enumerate(run.network.slots)]
        self._good = RunSnapshot(run.host.save(), run.network.host_gradient_rms, slots)

    @staticmethod
    def _slot_snapshot(slot: Slot, placed: Placed | None) -> SlotSnapshot:
        weights = None if placed is None else placed.save()
        return SlotSnapshot(replace(slot.life), replace(slot.statistics), placed, weights)

    def _seeds_are_finite(self) -> bool:
        return all(bool(torch.isfinite(placed.weights()).all()) for placed in self._run.seeds.values())

    def _restore(self) -> None:
        run = self._run
        run.host.restore(self._good.host)
        run.network.host_gradient_rms = self._good.host_gradient_rms
        for slot, good in zip(run.network.slots, self._good.slots, strict=True):
            slot.life, slot.statistics = replace(good.life), replace(good.statistics)
            seed = None if good.placed is None else good.placed.module
            assert seed is None or isinstance(seed, Seed)
            slot.seed = seed
            slot.refresh()
        self._stack.settle_seeds(run)
        for index, good in enumerate(self._good.slots):
            if good.weights is not None:
                run.seeds[index].restore(good.weights)
