"""What ``Growth`` remembers of one step, and what it makes of all of them: the lives of the seeds, and the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from esper.lifecycle import Stage
from esper.network.growing_network import Event, GrowingNetwork


@dataclass(frozen=True)
class Step:
    """One call of ``Growth.step``: the interval that ended, and the decision for the next one."""

    decision: int
    """Intervals of training that are over, this one included."""
    loss: float
    """Validation loss."""
    score: float
    """Validation score, at most 1; of a loss alone 1 − loss / chance_loss."""
    train_loss: float | None
    """Mean training loss of the interval, where it was given."""
    added_params: int
    """Parameters of all seeds during the interval."""
    slots: dict[str, tuple[str, str | None, float]]
    """Each slot during the interval: name of its stage, blueprint, alpha."""
    contributions: dict[str, float]
    """By slot: what the seed takes off the loss at the end of the interval, in points of score."""
    rolled_back: bool
    """Whether the governor had to take the run back."""
    decided: str
    """The decision for the next interval, in words."""
    events: list[Event] = field(default_factory=list)
    """What the governor and the decision changed."""
    auditions: dict[str, dict[str, float]] = field(default_factory=dict)
    """By slot and blueprint: what each candidate would take off the loss, in points of score, where auditions ran."""
    evaluations: int = 1
    """Number of evaluations that this step took."""
    contribution_seconds: float = 0.0
    """Time spent on measuring contributions."""
    seconds: float = 0.0
    """Time since the step before it, training included."""

    def to_state(self) -> dict[str, Any]:
        """Plain data, as a checkpoint holds it."""
        state = asdict(self)
        for event in state["events"]:
            event["stage"] = int(event["stage"])
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Step:
        """What :meth:`to_state` gave."""
        events = [Event(**{**event, "stage": Stage(event["stage"])}) for event in state["events"]]
        slots = {name: tuple(seed) for name, seed in state["slots"].items()}
        return cls(**{**state, "events": events, "slots": slots})


@dataclass
class SeedLife:
    """One seed from germination on."""

    slot: str
    blueprint: str
    germinated: int
    """Number of the step that germinated it."""
    ended: int | None = None
    """Number of the step that pruned it or kept it for good."""
    outcome: str = ""
    contribution: float | None = None
    """As measured last, in points of score."""


def seed_lives(steps: Sequence[Step], network: GrowingNetwork) -> list[SeedLife]:
    """Every seed there was, in the order of germination."""
    lives: list[SeedLife] = []
    present: dict[str, SeedLife] = {}
    for step in steps:
        for name, value in step.contributions.items():
            if name in present:
                present[name].contribution = value
        for event in step.events:
            if event.kind == "germinated":
                present[event.slot] = SeedLife(event.slot, str(event.blueprint), step.decision)
                lives.append(present[event.slot])
            elif event.kind == "fossilized" and event.slot in present:
                present[event.slot].ended, present[event.slot].outcome = step.decision, "kept"
            elif event.kind == "pruned" and event.slot in present:
                gone = present.pop(event.slot)
                gone.ended, gone.outcome = step.decision, "pruned"
    for slot in network.slots:
        if slot.name in present and not present[slot.name].outcome:
            left = f"{slot.stage.name.lower()}, alpha {slot.alpha:g}"
            present[slot.name].outcome = "taken out at the end" if slot.seed is None else left
    return lives


def record(steps: Sequence[Step], network: GrowingNetwork, policy: str) -> dict[str, Any]:
    """What ``GrowthRecord.from_json`` reads."""
    return {
        "task": type(network.model).__name__,
        "policy": policy,
        "scores": [step.score for step in steps],
        "added_params": [step.added_params for step in steps],
        "slots": {name: [list(step.slots[name]) for step in steps] for name in network.slot_names},
        "host_params": network.host_params,
        "host_alone_scores": [],
        "title": "",
    }


def slots_table(network: GrowingNetwork, title: str) -> Table:
    """One row a slot: where it is and what it carries."""
    table = Table(title=title, title_justify="left")
    for column in ("slot", "tensor", "kind", "channels", "positions"):
        table.add_column(column, overflow="fold")
    for slot in network.slots:
        kind = slot.spec.kind + (", causal" if slot.spec.causal else "")
        table.add_row(slot.name, slot.output, kind, str(slot.spec.channels), str(slot.spec.positions))
    return table


def summary(steps: Sequence[Step], network: GrowingNetwork) -> Group:
    """What grew, when, what it contributed and what it cost, for a rich console."""
    costs = {slot.name: (slot.seed_params, network.slot_flops(i)) for i, slot in enumerate(network.slots)}
    table = Table(title="Growth", title_justify="left")
    for column in ("slot", "seed", "from", "outcome", "contributed", "params", "FLOPs"):
        table.add_column(column, overflow="fold")
    lives = seed_lives(steps, network)
    for life in lives:
        outcome = life.outcome + (f" at {life.ended}" if life.ended is not None else "")
        contribution = "" if life.contribution is None else f"{100 * life.contribution:+.1f} points"
        params, flops = (0, 0) if life.outcome == "pruned" else costs[life.slot]
        table.add_row(
            life.slot,
            life.blueprint,
            f"step {life.germinated}",
            outcome,
            contribution,
            f"{params:,}",
            f"{flops:,}",
        )
    empty = [name for name in costs if not any(life.slot == name and life.outcome != "pruned" for life in lives)]
    for name in empty:
        table.add_row(name, "—", "", "empty", "", "0", "0")
    return Group(table, Text("\n".join(_notes(steps, network))))


def _notes(steps: Sequence[Step], network: GrowingNetwork) -> list[str]:
    host, added = network.host_params, network.added_params
    budget = "" if network.budget is None else f", budget {network.budget:,}"
    flops = "" if network.flops_budget is None else f", budget {network.flops_budget:,}"
    notes = [
        f"Parameters: host {host:,}, added {added:,}{budget}",
        f"FLOPs a sample: added {network.added_flops:,}{flops}",
    ]
    inside = [f"{slot.name}: {slot.output}" for slot in network.slots if slot.output != "output"]
    if inside:
        notes.append(f"The tensor that grows in a slot: {', '.join(inside)}")
    if steps:
        last = steps[-1].decision
        notes.append(f"Score: {steps[0].score:.1%} at step 1 → {steps[-1].score:.1%} at step {last}")
        notes.append(f"Loss: {steps[0].loss:.4g} at step 1 → {steps[-1].loss:.4g} at step {last}")
        if len(steps) > 1 and max(step.score for step in steps) <= 0:
            notes.append("The score never rose above 0, where a constant guess is; is it a share, higher being better?")
        seconds, total = sum(s.contribution_seconds for s in steps), sum(s.seconds for s in steps)
        extra = sum(s.evaluations - 1 for s in steps)
        share = f" ({seconds / total:.0%} of the run's {total:.1f} s)" if total > 0 else ""
        notes.append(f"Contributions: {extra} extra evaluations, {seconds:.1f} s{share}")
    rollbacks = [s.decision for s in steps if s.rolled_back]
    if rollbacks:
        notes.append(f"Rolled back by the governor at step {', '.join(map(str, rollbacks))}")
    return notes
