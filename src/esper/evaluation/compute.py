"""What a training run costs, in FLOPs: the same accounting for every arm.

Forward passes are counted by :mod:`torch.utils.flop_counter` (matrix products, convolutions and attention, a
multiply-add as two); a backward pass counts as two forward passes. Counted are

- training of the host and of every seed that is there, pruned ones for as long as they lived,
- attribution: the evaluations with a seed acting otherwise, which only growth needs.

Not counted, since every arm needs it alike: one validation a decision, and the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from esper.env.engine.run import ATTRIBUTION_SAMPLES
from esper.env.episode import Episode
from esper.growth.blueprints import SlotSpec, count_flops
from esper.growth.network import GrowingNetwork
from esper.tasks import Task

SlotHistory = Mapping[str, Sequence[tuple[str, str | None, float]]]
"""Slot name → (stage, blueprint, alpha) after every decision, ``[T + 1]``."""

_PASSES = {"TRAINING": 1, "BLENDING": 2, "HOLDING": 1}
"""Attribution passes a decision of a seed in this stage."""


def training_flops(task: Task, episode: Episode, slots: SlotHistory) -> list[float]:
    """Cumulative FLOPs after every decision, ``[T + 1]``; the first is 0."""
    host, specs = _host_costs(task, episode.width, episode.depth)
    total, result = 0.0, [0.0]
    for decision in range(1, len(next(iter(slots.values())))):
        states = [(name, *history[decision]) for name, history in slots.items()]
        seeds = sum(count_flops(kind, specs[name]) for name, _, kind, _ in states if kind is not None)
        passes = sum(_PASSES.get(stage, 0) for _, stage, kind, _ in states if kind is not None)
        samples = episode.steps_per_decision(task) * task.batch_size
        total += (host + seeds) * (3 * samples + passes * min(ATTRIBUTION_SAMPLES, len(task.splits().val_x)))
        result.append(float(total))
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
