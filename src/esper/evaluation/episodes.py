"""How a policy is judged: the same episodes for every policy, and test data touched once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from esper.actions import ALL_BLUEPRINTS, STYLES
from esper.env.flops import training_flops
from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import Outcome, find_objective, score_less_rent
from esper.lifecycle import Op
from esper.tamiyo.policy.protocol import Actions, Observation, Policy

OnDecision = Callable[[int, int], None]
"""Called with (decisions done, decisions in all) while episodes run."""

SlotState = tuple[str, str | None, float]
"""(stage, blueprint, alpha) of a slot after a decision."""

Block = tuple[str, str, str, float]
"""(slot, blueprint, style, alpha) of a seed in a network."""


@dataclass(frozen=True)
class EpisodeResult:
    """What one episode came to, with its growth decision by decision (index 0: before the first decision)."""

    task: str
    arm: str
    seed: int
    J: float
    """Objective on validation data, less penalties."""
    score: float
    """Validation score of the final network, in [0, 1]."""
    test_score: float
    """Test score of the final network, in [0, 1]."""
    host_params: int
    added_params: int
    train_samples_seen: int
    scores: list[float]
    """Validation score after every decision, [T + 1]."""
    sizes: list[int]
    """Added parameters after every decision, [T + 1]."""
    slots: dict[str, list[SlotState]]
    """Slot name → (stage, blueprint, alpha) after every decision, [T + 1]."""
    ops: list[str]
    """Op taken at every decision, [T]."""
    architecture: list[Block]
    """(slot, blueprint, style, alpha) of every seed that is blended into the final network."""
    train_flops: list[float]
    """FLOPs of training so far, after every decision, [T + 1]; what is counted says :mod:`esper.env.flops`."""
    rent: float
    """Price of a doubling of parameters, in points of score."""
    features: list[list[float]] = field(default_factory=list)
    """What the controller saw at every decision, [T, 24 + 34·S]; empty where it was not kept."""
    objective: str = score_less_rent.__name__
    """What the run was worth, by name: Φ of its score and its parameters (:mod:`esper.env.reward`)."""

    @property
    def total_params(self) -> int:
        """Parameters of the final network, host included."""
        return self.host_params + self.added_params

    @property
    def test_J(self) -> float:
        """Objective on test data: Φ of the test score."""
        outcome = Outcome(self.test_score, self.total_params, self.host_params, self.rent)
        return float(find_objective(self.objective)(outcome))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; :func:`esper.files.from_plain` reads it back."""
        return asdict(self)


class _Recorder:
    """Collects what every row shows and does, decision by decision."""

    def __init__(self, env: GrowthVectorEnv, *, keep_features: bool) -> None:
        self.env, self.keep_features = env, keep_features
        self.scores: list[list[float]] = [[] for _ in range(env.num_envs)]
        self.sizes: list[list[int]] = [[] for _ in range(env.num_envs)]
        self.ops: list[list[str]] = [[] for _ in range(env.num_envs)]
        self.features: list[list[list[float]]] = [[] for _ in range(env.num_envs)]
        self.slots: list[dict[str, list[SlotState]]] = [
            {name: [] for name in env.task.slots} for _ in range(env.num_envs)
        ]
        self.auditions: list[dict[str, list[list[str]]]] = [
            {name: [] for name in env.task.slots} for _ in range(env.num_envs)
        ]
        self._record_networks()

    def record(self, seen: Observation, actions: Actions) -> None:
        """Add one decision: what the policy saw, what it did, and what came of it."""
        for row, op in enumerate(actions["op"]):
            self.ops[row].append(Op(int(op)).name)
            if self.keep_features:
                self.features[row].append(seen["features"][row].tolist())
        self._record_networks()

    def _record_networks(self) -> None:
        histories = zip(self.env.reports, self.scores, self.sizes, self.slots, self.auditions, strict=True)
        for report, scores, sizes, slots, auditions in histories:
            scores.append(report.reading.scores[-1])
            sizes.append(report.reading.added_params)
            for name, slot in zip(self.env.task.slots, report.reading.slots, strict=True):
                slots[name].append((slot.stage.name, slot.blueprint_name, slot.alpha))
                auditions[name].append(slot.auditioning)

    def architecture(self, row: int) -> list[Block]:
        """The blocks of the network as it is now."""
        slots = zip(self.env.task.slots, self.env.reports[row].reading.slots, strict=True)
        return [
            (name, ALL_BLUEPRINTS[slot.blueprint], STYLES[slot.style], slot.alpha)
            for name, slot in slots
            if slot.alpha > 0 and slot.style is not None
        ]


def validation_objectives(
    env: GrowthVectorEnv, policy: Policy, seeds: Sequence[int], *, on_decision: OnDecision | None = None
) -> np.ndarray:
    """J of one episode for each of the ``seeds``, one per row of ``env``, ``[K]``; test data stays untouched.

    Raises:
        ValueError: As in :func:`run_episodes`.
    """
    observation = _begin(env, policy, seeds)
    return _play(env, policy, observation, on_decision)["J"]


def run_episodes(
    env: GrowthVectorEnv,
    policy: Policy,
    seeds: Sequence[int],
    *,
    arm: str,
    on_decision: OnDecision | None = None,
    keep_features: bool = False,
) -> list[EpisodeResult]:
    """Let ``policy`` steer one episode for each of the ``seeds``, one per row of ``env``; results in their order.

    Args:
        env: Plays the episodes; autoreset mode NEXT_STEP.
        policy: Decides.
        seeds: Of the episodes; see :func:`evaluation_seeds`.
        arm: Name of the policy in the results.
        on_decision: Called after every decision.
        keep_features: What the policy saw becomes part of the results.

    Raises:
        ValueError: When ``env`` has another number of rows than there are seeds, or resets itself within a step.
    """
    observation = _begin(env, policy, seeds)
    recorder = _Recorder(env, keep_features=keep_features)
    final = _play(env, policy, observation, on_decision, recorder.record)
    test_scores = env.test_scores()
    return [
        EpisodeResult(
            task=env.task.name,
            arm=arm,
            seed=int(seeds[row]),
            J=float(final["J"][row]),
            score=float(final["score"][row]),
            test_score=float(test_scores[row]),
            host_params=env.reports[row].reading.host_params,
            added_params=env.reports[row].reading.added_params,
            train_samples_seen=env.reports[row].train_samples_seen,
            scores=recorder.scores[row],
            sizes=recorder.sizes[row],
            slots=recorder.slots[row],
            ops=recorder.ops[row],
            architecture=recorder.architecture(row),
            train_flops=training_flops(env.task, env.episodes[row], recorder.slots[row], recorder.auditions[row]),
            rent=env.episodes[row].rent,
            features=recorder.features[row],
            objective=env.reward_config.objective,
        )
        for row in range(env.num_envs)
    ]


def _play(
    env: GrowthVectorEnv,
    policy: Policy,
    observation: Observation,
    on_decision: OnDecision | None,
    record: Callable[[Observation, Actions], None] | None = None,
) -> Mapping[str, np.ndarray]:
    """Play episodes that have begun to their end; what they came to, ``[K]`` each (J, score, …)."""
    horizon = env.episodes[0].horizon
    info: dict[str, Any] = {}
    for decision in range(horizon):
        seen, actions = observation, policy.act({**observation, "slot_names": env.task.slots})
        observation, _, _, _, info = env.step(actions)
        if record is not None:
            record(seen, actions)
        if on_decision is not None:
            on_decision(decision + 1, horizon)
    return info["episode_metrics"]


def _begin(env: GrowthVectorEnv, policy: Policy, seeds: Sequence[int]) -> dict[str, Any]:
    """The first observations of episodes with these seeds, in which what the policy asks for auditions."""
    if env.autoreset_mode is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            "episodes are evaluated in an environment with autoreset_mode NEXT_STEP, which keeps the final networks"
        )
    if len(seeds) != env.num_envs:
        raise ValueError(f"expected one seed for each of the {env.num_envs} rows, got {len(seeds)}")
    auditions = getattr(policy, "auditions", env.auditions)
    observation, _ = env.reset(seed=0, options={"episode_seeds": list(seeds), "auditions": auditions})
    if any(episode.horizon != env.episodes[0].horizon for episode in env.episodes):
        raise ValueError("episodes are evaluated at one length; evaluate variants of the horizon one at a time")
    policy.reset(env.num_envs, seed=int(np.random.SeedSequence(list(seeds)).generate_state(1)[0]))
    return observation


def evaluation_seeds(count: int, *, seed: int, purpose: str) -> list[int]:
    """``count`` episode seeds that depend only on ``seed`` and ``purpose`` ("validation", "test", …)."""
    entropy = [seed, *purpose.encode()]
    return [int(s) for s in np.random.SeedSequence(entropy).generate_state(count)]
