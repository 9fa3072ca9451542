"""Archer: its rules, and its ceilings by enumeration."""

from __future__ import annotations

from itertools import combinations, permutations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from esper.simic.archer import CEILINGS, DISTANCES, HEADS, ROUNDS, TARGETS, Archer, points
from esper.simic.locksmith import register_environments
from esper.simic.spaces import EnvironmentAdapter, make_envs

PAIRS = list(combinations(range(TARGETS), 2))
RANGES = np.linspace(-1, 1, 401)


def action(act: int, target: int = 0, shot: float = 0.0) -> dict:
    return {"act": act, "target": target, "range": np.array([shot], np.float32)}


def play(seed: int, choose) -> float:
    """Return of one episode; ``choose`` maps (targets in sight, distances shown so far) to (target, range)."""
    env = Archer()
    observation, _ = env.reset(seed=seed)
    distances: dict[int, float] = {}
    total, over = 0.0, False
    while not over:
        if observation["target"]:
            distances[int(observation["target"]) - 1] = float(observation["distance"][0])
        mask = observation["action_mask"]
        shoots = int(mask["act"][1])
        observation, reward, over, truncated, _ = env.step(action(shoots, *choose(mask["target"], distances)))
        assert not truncated
        total += reward
    return total


def test_whoever_remembers_obeys_the_mask_and_shoots_as_far_as_the_target_is_gets_everything() -> None:
    def choose(in_sight, distances):
        target = int(np.flatnonzero(in_sight)[-1])
        return target, distances.get(target, 0.0)

    assert [play(seed, choose) for seed in range(20)] == pytest.approx([CEILINGS["everything"]] * 20)


def test_a_shot_at_what_is_not_in_sight_ends_the_episode() -> None:
    env = Archer()
    observation, _ = env.reset(seed=0)
    *_, reward, over, _, _ = env.step(action(1))
    assert (over, reward) == (True, 0)
    observation, _ = env.reset(seed=0)
    for _ in range(TARGETS):
        observation, *_ = env.step(action(0))
    hidden = int(np.flatnonzero(observation["action_mask"]["target"] == 0)[0])
    assert env.step(action(1, hidden))[2]


def test_two_targets_are_in_sight_once_all_are_shown() -> None:
    env = Archer()
    observation, _ = env.reset(seed=0)
    shown, distances = [], []
    for step in range(TARGETS + ROUNDS):
        mask = observation["action_mask"]
        assert mask["act"].tolist() == [1, int(step >= TARGETS)]
        assert mask["target"].sum() == (TARGETS if step < TARGETS else 2)
        shown.append(int(observation["target"]))
        distances.append(float(observation["distance"][0]))
        observation, *_ = env.step(action(0))
    assert shown == [1, 2, 3, 4] + [0] * ROUNDS
    assert sorted(distances[:TARGETS]) == pytest.approx(sorted(DISTANCES))
    assert distances[TARGETS:] == [0.0] * ROUNDS


@pytest.mark.parametrize(("shot", "expected"), [(0.2, 1.0), (0.4, 0.5), (0.0, 0.5), (0.6, 0.0), (-1.0, 0.0)])
def test_a_shot_earns_less_the_further_off_it_is(shot: float, expected: float) -> None:
    assert points(shot, 0.2) == pytest.approx(expected)


def test_ceiling_without_memory() -> None:
    """For every target and range: each distance is equally likely, whatever the mask says."""
    at = list(permutations(DISTANCES))
    earned = [np.mean([points(shot, distances[0]) for distances in at]) for shot in RANGES]
    assert max(earned) == pytest.approx(CEILINGS["no memory"])


def test_ceiling_without_mask() -> None:
    """Dynamic programming: with r rounds to go, wait or shoot as far as it is at any target."""
    value = 0.0
    for _ in range(ROUNDS):
        in_sight = [np.mean([target in pair for pair in PAIRS]) for target in range(TARGETS)]
        value = max(value, *(p * (1 / ROUNDS + value) for p in in_sight))
    assert value == pytest.approx(CEILINGS["no mask"])


def best_of_each_pair(shot: float) -> float:
    """What a range earns with the better target of every pair."""
    return np.mean([max(points(shot, DISTANCES[target]) for target in pair) for pair in PAIRS])


def test_ceiling_with_independent_heads() -> None:
    """The range is drawn from one distribution for all pairs of targets, the target with knowledge of the pair.

    For a given distribution the best target of each pair is the one that it earns more with. The result is convex in
    the distribution (a mean of maxima), so a single range is best.
    """
    best = max(best_of_each_pair(shot) for shot in RANGES)
    assert best == pytest.approx(CEILINGS["independent heads"])
    each = np.array([[points(shot, distance) for distance in DISTANCES] for shot in RANGES])
    mixed = np.random.default_rng(0).dirichlet(np.full(len(RANGES), 0.01), size=1000) @ each
    assert max(np.mean([max(q[a], q[b]) for a, b in PAIRS]) for q in mixed) <= best


def test_ceiling_without_the_number() -> None:
    assert best_of_each_pair(0.0) == pytest.approx(CEILINGS["no number"])


def test_passes_the_checker_of_gymnasium_and_is_registered() -> None:
    register_environments()
    check_env(gym.make("esper/Archer-v0").unwrapped)
    assert EnvironmentAdapter(make_envs("esper/Archer-v0", 2)).heads == HEADS
