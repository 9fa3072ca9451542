"""What a controller of growth is: the ``Policy`` protocol, and a base class for rules.

A policy steers B runs at once. It sees what the environment shows (features, blueprints, action mask) and answers with
one choice per head. The environment, ``Growth`` and the evaluation all use this one protocol.

Example:
    A rule of one's own: germinate the first allowed blueprint wherever possible, and let every seed in.

    >>> from esper.lifecycle import Op
    >>> class Eager(RulePolicy):
    ...     def decide(self, run):
    ...         if (choice := run.first_allowed(Op.GERMINATE)) is not None:
    ...             return choice
    ...         if (choice := run.first_allowed(Op.ADVANCE)) is not None:
    ...             return choice
    ...         return Decision()
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from esper.actions import HEAD_NAMES, Decision, slot_index
from esper.auditions import Auditions
from esper.lifecycle import Op
from esper.observation import ObservationView

Observation = Mapping[str, Any]
"""``features`` float ``[B, 24 + 34·S]``, ``blueprints`` int ``[B, S]``, ``action_mask`` {head: bool ``[B, ...]``};
``prospects`` float ``[B, S, 13, P]`` where there are any; where the names of the slots are known, ``slot_names``, S of
them, the same for every run."""

Actions = dict[str, np.ndarray]
"""Head name → int64 ``[B]``."""


@dataclass(frozen=True)
class Reason:
    """Why a policy decided as it did, in one run: a rule says it in words, a learned policy in numbers."""

    words: str = ""
    """Of a rule."""
    probabilities: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a learned policy: head → choice → probability, given the heads before it, of the heads that its op uses."""
    op_values: dict[str, float] = field(default_factory=dict)
    """Of a learned policy: op → Q(s, op), of the ops that were allowed."""


class Policy(Protocol):
    """Anything that decides for B runs at once.

    One that decides by auditions says which, in an attribute ``auditions``
    (:class:`~esper.auditions.Auditions`). One that can say why it decided as it did, does so after :meth:`act` in an
    attribute ``reasons``, a :class:`Reason` for each of the B runs.
    """

    def reset(self, num_runs: int, seed: int) -> None:
        """Forget everything: ``num_runs`` new runs begin. ``seed`` drives whatever the policy draws."""

    def act(self, observation: Observation) -> Actions:
        """One legal decision for each of the B runs."""


@dataclass
class RunView:
    """What a rule sees of one run at one decision, and what it remembers of it."""

    decision: int = 0
    """Decisions taken so far in this run."""
    memory: dict[Any, Any] = field(default_factory=dict)
    """The rule's own notes; empty when the run begins."""
    slot_names: tuple[str, ...] = ()
    """What the slots are called, where it is known; a rule may name them then."""
    reason: str = ""
    """Why the rule decides as it does, in words; a rule may write it here at every decision."""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    observation: ObservationView = field(init=False)
    masks: dict[str, np.ndarray] = field(init=False)

    def allows(self, op: Op, slot: int | str) -> bool:
        """Whether ``op`` is legal for ``slot`` now."""
        return bool(self.masks["op"][op] and self.masks["slot"][op, slot_index(slot, self.slot_names)])

    def slots_allowing(self, op: Op) -> list[int]:
        """The slots for which ``op`` is legal now."""
        return [s for s in range(self.observation.num_slots) if self.allows(op, s)]

    def blueprints_for(self, slot: int) -> list[int]:
        """The blueprints that fit ``slot`` and what is left of the budget."""
        return np.flatnonzero(self.masks["blueprint"][slot]).tolist()

    def rent_of(self, slot: int) -> float:
        """The rent that the seed in ``slot`` costs: what its removal would save, in points of score."""
        share = self.observation["rent"] or 0.0
        size = 2 ** (6 * (self.observation["size_ratio"] or 0.0))
        seed = 2 ** (4 * (self.observation.slot(slot, "seed_params") or 0.0)) - 1
        return 0.02 * share / (1 - share) * math.log2(size / (size - seed))

    def first_allowed(self, op: Op) -> Decision | None:
        """``op`` on the first slot (and with the first blueprint) for which it is legal, or ``None``."""
        for slot in self.slots_allowing(op):
            blueprint = self.blueprints_for(slot)[0] if op is Op.GERMINATE else 0
            return Decision(op, slot, blueprint)
        return None


class RulePolicy(ABC):
    """A policy written as a rule for one run; :meth:`decide` is all there is to write."""

    auditions: Auditions | None = None
    """What auditions in empty slots where this rule decides; ``None`` for a rule that does not ask."""

    def __init__(self) -> None:
        self._runs: list[RunView] = []
        self.reasons: Sequence[Reason] = ()
        """Why the latest decisions were taken, one entry a run."""

    def reset(self, num_runs: int, seed: int) -> None:
        """Begin ``num_runs`` new runs; each gets its own random generator, drawn from ``seed``."""
        children = np.random.SeedSequence(seed).spawn(num_runs)
        self._runs = [RunView(rng=np.random.default_rng(child)) for child in children]

    @abstractmethod
    def decide(self, run: RunView) -> Decision:
        """The decision for one run."""

    def act(self, observation: Observation) -> Actions:
        """One decision for each run, in order."""
        features = np.asarray(observation["features"])
        if len(features) != len(self._runs):
            raise ValueError(
                f"expected observations of {len(self._runs)} runs, got {len(features)}; "
                f"call reset(num_runs={len(features)}, seed=...) when new runs begin"
            )
        decisions, prospects = [], observation.get("prospects")
        for row, run in enumerate(self._runs):
            run.observation = ObservationView(
                features[row],
                np.asarray(observation["blueprints"][row]),
                None if prospects is None else np.asarray(prospects[row]),
            )
            run.masks = {name: np.asarray(observation["action_mask"][name][row]) for name in HEAD_NAMES}
            run.slot_names = tuple(observation.get("slot_names", ()))
            run.reason = ""
            decisions.append(self.decide(run).to_mapping(run.slot_names))
            run.decision += 1
        self.reasons = [Reason(run.reason) for run in self._runs]
        return {name: np.array([d[name] for d in decisions], dtype=np.int64) for name in HEAD_NAMES}
