"""What the result of a growth is made of: the lives of its seeds, what its policy saw, and its compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper.growth.result import KEPT, PRUNED, GrowthResult, SeedLife
from esper.growth.step import Step
from esper.growth.verdict import Compute
from esper.network.blueprints import count_flops
from esper.network.growing_network import GrowingNetwork
from esper.observation import RUN_FIELDS, SLOT_FIELDS, ObservationView


def seed_lives(steps: Sequence[Step], network: GrowingNetwork, inside: Mapping[str, int]) -> list[SeedLife]:
    """Every seed there was, in the order of germination; ``inside``: slot → parameters of the seed in the network."""
    lives: list[SeedLife] = []
    present: dict[str, SeedLife] = {}
    for step in steps:
        for name, value in step.contributions.items():
            if name in present:
                present[name].contribution = value
        for event in step.events:
            why = step.judged.get(event.slot, step.reason)
            if event.kind == "germinated":
                present[event.slot] = SeedLife(event.slot, str(event.blueprint), step.decision, why)
                lives.append(present[event.slot])
            elif event.kind in ("fossilized", "pruning", "pruned") and event.slot in present:
                seed = present[event.slot]
                seed.why_ended = seed.why_ended or why
                if event.kind != "pruning":
                    seed.ended, seed.outcome = step.decision, KEPT if event.kind == "fossilized" else PRUNED
                if event.kind == "pruned":
                    del present[event.slot]
    for index, slot in enumerate(network.slots):
        if slot.name not in present:
            continue
        seed = present[slot.name]
        seed.outcome = seed.outcome or f"{slot.stage.name.lower()}, alpha {slot.alpha:g}"
        if slot.name in inside:
            seed.params, seed.flops = inside[slot.name], network.slot_flops(index)
    return lives


def what_was_seen(observations: Sequence[Mapping[str, Any]], slot_names: Sequence[str]) -> dict[str, Any]:
    """The observations of one run in columns, for :attr:`GrowthResult.saw`."""
    views = [ObservationView(one["features"][0], one["blueprints"][0]) for one in observations]
    seen = {"the run": {f.name: [_rounded(view[f.name]) for view in views] for f in RUN_FIELDS}}
    for index, slot in enumerate(slot_names):
        seen[slot] = {f.name: [_rounded(view.slot(index, f.name)) for view in views] for f in SLOT_FIELDS}
    return seen


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def count_compute(result: GrowthResult, network: GrowingNetwork, *, train: int, measured: int) -> Compute:
    """The FLOPs of a growth.

    Args:
        result: Of the growth.
        network: What grew.
        train: Training samples between two steps.
        measured: Samples of an evaluation that measures contributions.
    """
    specs = {slot.name: slot.spec for slot in network.slots}
    spent = dict.fromkeys((True, False), 0.0)  # on seeds that are in the network at the end, and on others
    measuring = auditions = 0.0
    for step in result.steps:
        seeds = {slot: count_flops(kind, specs[slot]) for slot, (_, kind, _) in step.slots.items() if kind is not None}
        for slot, flops in seeds.items():
            lives = [s for s in result.seeds if s.slot == slot and s.germinated < step.decision]
            spent[bool(lives and lives[-1].params)] += 3.0 * train * flops
        candidates = [count_flops(kind, specs[slot]) for slot, gains in step.auditions.items() for kind in gains]
        auditions += 3.0 * train * sum(candidates)
        measuring += float(measured) * (step.evaluations - 1) * (result.host_flops + sum(seeds.values()))
    host = 3.0 * train * len(result.steps) * result.host_flops
    return Compute(host, spent[True], spent[False], measuring, auditions)
