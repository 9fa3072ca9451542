"""What a training run costs, in FLOPs: the same accounting for every arm.

Forward passes are counted by :mod:`torch.utils.flop_counter` (matrix products, convolutions and attention, a
multiply-add as two); a backward pass counts as two forward passes. Counted are

- training of the host and of every seed that is there, pruned ones for as long as they lived,
- attribution: the evaluations with a seed acting otherwise, which only growth needs;
- auditions: the passes of every candidate, in training and in the evaluation as if it were blended in.

Not counted, since every arm needs it alike: one validation per decision, and the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from esper.env.engine.run import ATTRIBUTION_SAMPLES
from esper.env.episode import Episode
from esper.lifecycle import Stage
from esper.network.blueprints import SlotSpec, count_flops
from esper.network.growing_network import GrowingNetwork
from esper.tasks import Task

SlotHistory = Mapping[str, Sequence[tuple[str, str | None, float]]]
"""Slot name → (stage, blueprint, alpha) after every decision, ``[T + 1]``."""

_PASSES = {Stage.TRAINING.name: 1, Stage.BLENDING.name: 2, Stage.HOLDING.name: 1}
"""Attribution passes per decision of a seed in this stage."""


class ComputeMeter:
    """Counts the FLOPs of one episode, decision by decision.

    Args:
        task: What is learned.
        episode: Under which conditions.
    """

    def __init__(self, task: Task, episode: Episode) -> None:
        self._host, self._specs = _host_costs(task, episode.width, episode.depth)
        self._samples = episode.steps_per_decision(task) * task.batch_size
        self._attribution_samples = min(ATTRIBUTION_SAMPLES, len(task.splits().val_x))
        self._spent: dict[str, int] = {}
        self.host_alone = 3 * self._samples * self._host * episode.horizon
        """FLOPs of the whole episode, did nothing grow."""
        self.total = 0
        """FLOPs so far."""
        self.wasted = 0
        """FLOPs so far that nothing is left of: attribution, and the training of seeds that are gone."""
        self.extra = 0
        """FLOPs so far beyond those of the host alone."""

    def record(
        self, slots: Mapping[str, tuple[str, str | None]], auditioning: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Count one decision's interval of training.

        Args:
            slots: Slot name → (name of the stage, blueprint or ``None``), as they are after it.
            auditioning: Slot name → blueprints of the candidates that audition there.
        """
        seeds = {name: count_flops(kind, self._specs[name]) for name, (_, kind) in slots.items() if kind is not None}
        passes = sum(_PASSES.get(slots[name][0], 0) for name in seeds)
        network = self._host + sum(seeds.values())
        attribution = network * passes * self._attribution_samples
        auditions = self._auditions(auditioning or {}, network)
        measuring = attribution + auditions
        extra = 3 * self._samples * sum(seeds.values()) + measuring
        self.extra += extra
        self.total += 3 * self._samples * self._host + extra
        self.wasted += measuring + sum(self._spent.pop(name) for name in self._spent.keys() - seeds.keys())
        for name, flops in seeds.items():
            self._spent[name] = self._spent.get(name, 0) + flops * 3 * self._samples

    def _auditions(self, auditioning: Mapping[str, Sequence[str]], network: int) -> int:
        """FLOPs of one decision's auditions; those of a candidate that is germinated later are counted as wasted."""
        candidates = [count_flops(kind, self._specs[name]) for name, kinds in auditioning.items() for kind in kinds]
        evaluations = sum(network + flops for flops in candidates) * self._attribution_samples
        return 3 * self._samples * sum(candidates) + evaluations


def training_flops(
    task: Task, episode: Episode, slots: SlotHistory, auditions: Mapping[str, Sequence[Sequence[str]]] | None = None
) -> list[float]:
    """Cumulative FLOPs after every decision, ``[T + 1]``; the first is 0.

    Args:
        task: What is learned.
        episode: Under which conditions.
        slots: What each slot held after every decision.
        auditions: Slot name → blueprints of the candidates that auditioned there, after every decision.
    """
    meter, result = ComputeMeter(task, episode), [0.0]
    for decision in range(1, len(next(iter(slots.values())))):
        meter.record(
            {name: history[decision][:2] for name, history in slots.items()},
            {name: history[decision] for name, history in (auditions or {}).items()},
        )
        result.append(float(meter.total))
    return result


@cache
def _host_costs(task: Task, width: float, depth: int) -> tuple[int, dict[str, SlotSpec]]:
    """FLOPs of a forward pass of the host over one sample, and what each of its slots carries."""
    with torch.random.fork_rng(devices=[]):
        model = task.build_host(width=width, depth=depth).eval()
    example = task.splits().val_x[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    network = GrowingNetwork(model, task.slots, example, causal=task.causal)
    specs = {slot.name: slot.spec for slot in network.slots}
    network.remove()
    return counter.get_total_flops(), specs
