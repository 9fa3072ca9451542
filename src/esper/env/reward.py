"""The objective and the reward: a potential that telescopes, so that nothing can be farmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

from esper.extensions import Registry, look_up
from esper.observation import doublings


@dataclass(frozen=True)
class Outcome:
    """How a run stands after a decision: all that an objective may depend on."""

    score: float
    """On validation data, or on test data at the end of all, in [0, 1]."""
    params: int
    """Parameters of the network as it is now, host included."""
    host_params: int
    rent: float
    """Price of a doubling of parameters in this episode, in points of score."""


Potential = Callable[[Outcome], float]
"""Φ, what a run is worth as it stands. It sees nothing else: neither time, nor chance, nor what it was asked before."""

AnyPotential = TypeVar("AnyPotential", bound=Potential)

OBJECTIVES: Registry[Potential] = Registry("objectives")
"""The objectives that can be asked for by name."""


def register_objective(potential: AnyPotential) -> AnyPotential:
    """Decorator: make Φ, a function of an :class:`Outcome`, an objective under its name.

    Values of about the size of a score, within ±10, are learned from as well as the score is.

    Raises:
        ValueError: When the name is taken, or for what is no potential: a function that gives two values for one
            outcome, or no finite number.

    Example:
        >>> @register_objective
        ... def within_twice(outcome):
        ...     "The score, as long as the network is no larger than two hosts."
        ...     return outcome.score if outcome.params <= 2 * outcome.host_params else 0.0
        >>> RewardConfig(objective="within_twice").potential(Outcome(0.75, params=150, host_params=100, rent=0.0))
        0.75
        >>> del OBJECTIVES["within_twice"]
    """
    name = getattr(potential, "__name__", type(potential).__name__)
    _check_potential(name, potential)
    OBJECTIVES.register(name, potential)
    return potential


def find_objective(name: str) -> Potential:
    """The objective of a name, or of ``module:name``.

    Raises:
        ValueError: When there is none, or it is no potential.
    """
    if name not in OBJECTIVES:
        if ":" not in name:
            raise OBJECTIVES.unknown(name, "give module:name of a function")
        potential = look_up(name)
        _check_potential(name, potential)
        OBJECTIVES[name] = potential
    return OBJECTIVES[name]


def _check_potential(name: str, potential: Potential) -> None:
    """Ask for the value of some outcomes twice, in two orders."""
    host = 1000
    found = [
        Outcome(score, params, host, rent)
        for score, params, rent in product((0.0, 0.5, 1.0), (host, 3 * host // 2, 4 * host, 100 * host), (0.0, 0.02))
    ]
    _ask_again(name, potential, [(outcome, _value(name, potential, outcome)) for outcome in found])


def _value(name: str, potential: Potential, outcome: Outcome) -> float:
    try:
        value = float(potential(outcome))
    except Exception as error:
        raise ValueError(f"objective '{name}' failed on {outcome}: {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise ValueError(f"objective '{name}': expected a finite number for {outcome}, got {value}")
    return value


def _ask_again(name: str, potential: Potential, paid: Sequence[tuple[Outcome, float]]) -> None:
    """Raise ValueError if an outcome is worth anything else now than when it was paid for."""
    for outcome, before in reversed(paid):
        now = _value(name, potential, outcome)
        if now != before:
            raise ValueError(
                f"objective '{name}' gave {before} and later {now} for the same {outcome}; rewards telescope only if "
                "it depends on the outcome alone: leave out random numbers, clocks, and what it remembers of earlier "
                "calls"
            )


@register_objective
def score_less_rent(outcome: Outcome) -> float:
    """Φ = score − rent · log2(parameters / host parameters)."""
    return outcome.score - outcome.rent * doublings(outcome.host_params, outcome.params - outcome.host_params)


@dataclass(frozen=True)
class RewardConfig:
    """The objective of an episode: J = Φ − compute − penalties, Φ = score − rent · log2(params / host params)."""

    kind: str = "potential"
    """``potential``: r_t = Φ_t − Φ_(t−1); ``sparse``: J at the end, 0 before."""
    rent: float = 0.02
    """Price of a doubling of parameters, in points of score."""
    rollback_penalty: float = 0.05
    """Charged (in points of score) each time the governor has to roll a run back."""
    waste: float = 0.0
    """Price of training compute that nothing is left of, pruned seeds and measuring contributions, in points of score
    for as many FLOPs as the host alone takes for the whole episode."""
    compute: float = 0.0
    """Price of all training compute beyond that of the host alone, wasted or not, in the same unit."""
    objective: str = score_less_rent.__name__
    """Φ, by the name under which it is registered, or as ``module:name`` of a function of an :class:`Outcome`."""

    def __post_init__(self) -> None:
        if self.kind not in ("potential", "sparse"):
            raise ValueError(f"reward kind must be 'potential' or 'sparse', got '{self.kind}'")
        for name in ("rent", "rollback_penalty", "waste", "compute"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        find_objective(self.objective)

    @property
    def potential(self) -> Potential:
        """Φ as a function."""
        return find_objective(self.objective)


@dataclass
class Objective:
    """Turns the readings of one episode into rewards that sum to J.

    Φ before the first decision is 0, so the rewards of an episode sum to exactly J = Φ_T (DESIGN: potential-based
    rewards; Ng, Harada & Russell 1999), whatever the actions: nothing can be farmed.
    """

    config: RewardConfig
    rent: float
    """Price of a doubling of parameters in this episode, in points of score."""
    potential: float = 0.0
    """Φ after the latest decision, less what compute costs and penalties."""
    penalty: float = 0.0
    """Penalties charged so far."""
    paid: float = 0.0
    """Rewards given so far."""
    _outcomes: list[tuple[Outcome, float]] = field(default_factory=list)
    """What Φ said, decision by decision."""

    def reward(
        self,
        score: float,
        params: int,
        host_params: int,
        *,
        rolled_back: bool,
        done: bool,
        waste: float = 0.0,
        extra: float = 0.0,
    ) -> float:
        """Reward of one decision.

        Args:
            score: On validation data after it, in [0, 1].
            params: Parameters of the network after it, host included.
            host_params: Parameters of the host.
            rolled_back: Whether the governor had to step in.
            done: Whether the episode is over.
            waste: Compute so far that nothing is left of, in training runs of the host alone.
            extra: Compute so far beyond that of the host alone, in the same unit.

        Raises:
            ValueError: At the end of an episode if Φ has changed its mind on any outcome in it: the rewards would not
                sum to J.
        """
        name, phi = self.config.objective, self.config.potential
        outcome = Outcome(score, params, host_params, self.rent)
        value = _value(name, phi, outcome)
        self._outcomes.append((outcome, value))
        self.penalty += self.config.rollback_penalty * rolled_back
        self.potential = value - self.config.waste * waste - self.config.compute * extra - self.penalty
        reward = self.potential - self.paid if self.config.kind == "potential" or done else 0.0
        self.paid += reward
        if done:
            _ask_again(name, phi, self._outcomes)
        return reward
