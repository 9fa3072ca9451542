"""Fixed architectures, trained from scratch: what a grown network is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from esper.actions import ALL_BLUEPRINTS, ALPHA_TARGETS, STYLES, TEMPOS, Decision
from esper.env.engine.loop import HostRun
from esper.env.episode import NO_VARIANTS, Episode
from esper.env.flops import training_flops
from esper.evaluation.episodes import Block, EpisodeResult
from esper.lifecycle import Op
from esper.network.blueprints import BLUEPRINTS, count_parameters
from esper.network.growing_network import GrowingNetwork
from esper.observation import size_ratio
from esper.tamiyo.policy.protocol import RulePolicy, RunView
from esper.tasks import Task

_INSTANT = list(TEMPOS).index("instant")


@dataclass(frozen=True)
class Architecture:
    """A host with a block in some of its slots, there from the first step of training."""

    blocks: tuple[Block, ...]

    def decisions(self, task: Task) -> list[Decision]:
        """The decisions that put the blocks in, blended in at once and kept for good, before anything is trained."""
        decisions = []
        for name, blueprint, style, alpha in self.blocks:
            slot = task.slots.index(name)
            target = int(np.argmin(np.abs(np.subtract(ALPHA_TARGETS, alpha))))
            kind = ALL_BLUEPRINTS.index(blueprint)
            decisions += [
                Decision(Op.GERMINATE, slot, kind, STYLES.index(style)),
                Decision(Op.ADVANCE, slot, tempo=_INSTANT, alpha_target=target),
                Decision(Op.FOSSILIZE, slot),
            ]
        return decisions

    def flops_per_decision(self, task: Task, episode: Episode) -> float:
        """FLOPs of training for the time of one decision."""
        kept = {block[0]: ("FOSSILIZED", block[1], block[3]) for block in self.blocks}
        return training_flops(task, episode, {s: [kept.get(s, ("DORMANT", None, 0.0))] * 2 for s in task.slots})[-1]


class EarliestGrowth(RulePolicy):
    """Grows networks that are known beforehand, as early as one decision at a time allows.

    All blocks germinate in turn, then each is let in at once and kept. What is still lost against the same network from
    scratch is the price of growing itself, not of deciding.

    Args:
        task: What is learned.
        architectures: The network of each run, in order.
    """

    def __init__(self, task: Task, architectures: Sequence[Architecture]) -> None:
        super().__init__()
        self.task, self.architectures = task, architectures

    def reset(self, num_runs: int, seed: int) -> None:
        """Begin one run for each architecture."""
        super().reset(num_runs, seed)
        for run, architecture in zip(self._runs, self.architectures, strict=True):
            order = (Op.GERMINATE, Op.ADVANCE, Op.FOSSILIZE)
            run.memory["plan"] = sorted(architecture.decisions(self.task), key=lambda d: order.index(d.op))

    def decide(self, run: RunView) -> Decision:
        """The next decision of the plan that is legal; WAIT where none is."""
        for i, decision in enumerate(run.memory["plan"]):
            if run.allows(decision.op, decision.slot):
                return run.memory["plan"].pop(i)
        return Decision()


def episode_of(task: Task, seed: int, rent: float) -> Episode:
    """The episode with this seed under the task's own conditions, without a cap on parameters."""
    return NO_VARIANTS.draw(task, seed, rent=rent, budget=None, host_params=0)


def untrained(task: Task, episode: Episode, architecture: Architecture) -> HostRun:
    """The run of an episode with the blocks in place, before the first step of training."""
    run = HostRun(task, episode, ALL_BLUEPRINTS)
    for decision in architecture.decisions(task):
        run.network.step(decision)
    return run


def train_from_scratch(
    task: Task, episode: Episode, architecture: Architecture, *, arm: str, decisions: int | None = None
) -> EpisodeResult:
    """Train an architecture as its episode says: the same data order, host weights and optimizer as in growth.

    Args:
        task: What is learned.
        episode: Under which conditions.
        architecture: The network; its blocks begin as identities, as seeds do.
        arm: Name in the result.
        decisions: Length of the training, in decisions; the episode's horizon by default.
    """
    horizon = episode.horizon if decisions is None else max(1, decisions)
    run = untrained(task, replace(episode, horizon=horizon), architecture)
    for _ in range(horizon):
        run.step(Decision())
    states = {s.name: (s.stage.name, s.blueprint, s.alpha) for s in run.network.slots}
    slots = {name: [state] * (horizon + 1) for name, state in states.items()}
    added = run.network.added_params
    return EpisodeResult(
        task=task.name,
        arm=arm,
        seed=episode.seed,
        J=run.scores[-1] - episode.rent * size_ratio(run.reading(run.network)),
        score=run.scores[-1],
        test_score=run.test_score(),
        host_params=run.network.host_params,
        added_params=added,
        train_samples_seen=run.samples_seen,
        scores=list(run.scores),
        sizes=[added] * (horizon + 1),
        slots=slots,
        ops=[Op.WAIT.name] * horizon,
        architecture=[
            (s.name, s.blueprint, STYLES[s.life.style or 0], s.alpha) for s in run.network.slots if s.blueprint
        ],
        train_flops=training_flops(task, episode, slots),
        rent=episode.rent,
    )


def fitting(task: Task) -> dict[str, dict[str, int]]:
    """Slot → the blueprints that fit it → their parameters, the smallest first."""
    network = GrowingNetwork(task.build_host(), task.slots, task.splits().val_x[:2], causal=task.causal)
    sizes = {
        slot.name: {
            name: count_parameters(name, slot.spec) for name, kind in BLUEPRINTS.items() if kind.fits(slot.spec)
        }
        for slot in network.slots
    }
    return {slot: dict(sorted(kinds.items(), key=lambda kind: kind[1])) for slot, kinds in sizes.items()}


def all_slots_filled(task: Task) -> Architecture:
    """The largest fitting block in every slot."""
    return Architecture(tuple((slot, list(kinds)[-1], "add", 1.0) for slot, kinds in fitting(task).items()))


def random_architectures(task: Task, count: int, seed: int) -> Sequence[Architecture]:
    """In each slot, one of the fitting blocks or none, and one of the styles, all equally probable."""
    rng = np.random.default_rng([seed, 0xA5C])
    choices = {slot: list(kinds) for slot, kinds in fitting(task).items()}

    def draw() -> Architecture:
        picked = [(slot, int(rng.integers(len(names) + 1)), STYLES[rng.integers(3)]) for slot, names in choices.items()]
        return Architecture(tuple((s, choices[s][i], style, 1.0) for s, i, style in picked if i < len(choices[s])))

    return [draw() for _ in range(count)]
