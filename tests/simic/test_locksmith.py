"""Locksmith: its rules, and its ceilings by enumeration."""

from __future__ import annotations

from itertools import combinations, permutations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from esper.simic.locksmith import CEILINGS, DOORS, HEADS, ROUNDS, Locksmith, register_environments
from esper.simic.spaces import EnvironmentAdapter, make_envs

PAIRS = list(combinations(range(DOORS), 2))


def play(seed: int, choose) -> float:
    """Return of one episode; ``choose`` maps (mask, keys shown so far) to (door, key)."""
    env = Locksmith()
    observation, _ = env.reset(seed=seed)
    keys: dict[int, int] = {}
    total, over = 0.0, False
    while not over:
        if observation["door"]:
            keys[int(observation["door"])] = int(observation["key"]) - 1
        door, key = choose(observation["action_mask"]["door"], keys)
        observation, reward, over, truncated, _ = env.step({"door": door, "key": key})
        assert not truncated
        total += reward
    return total


def test_whoever_remembers_obeys_the_mask_and_matches_the_key_gets_everything() -> None:
    def choose(mask, keys):
        door = int(np.flatnonzero(mask)[-1])
        return door, keys.get(door, 0)

    assert [play(seed, choose) for seed in range(20)] == [CEILINGS["memory, masks and dependent heads"]] * 20


def test_a_door_out_of_reach_ends_the_episode() -> None:
    env = Locksmith()
    env.reset(seed=0)
    *_, reward, over, _, _ = env.step({"door": 1, "key": 0})
    assert over
    assert reward == 0


def test_two_doors_are_in_reach_once_all_are_shown() -> None:
    env = Locksmith()
    observation, _ = env.reset(seed=0)
    shown = []
    for step in range(DOORS + ROUNDS):
        mask = observation["action_mask"]["door"]
        assert mask[0] == 1
        assert mask[1:].sum() == (0 if step < DOORS else 2)
        shown.append((int(observation["door"]), int(observation["key"])))
        observation, *_ = env.step({"door": 0, "key": 0})
    assert [door for door, _ in shown] == [1, 2, 3, 4] + [0] * ROUNDS
    assert sorted(key for _, key in shown[:DOORS]) == [1, 2, 3, 4]
    assert {key for _, key in shown[DOORS:]} == {0}


def test_ceiling_without_memory() -> None:
    """For every distribution over (door, key): keys are equally likely for every door, whatever the mask says."""
    fits = {
        (door, key): np.mean([keys[door] == key for keys in permutations(range(DOORS))])
        for door in range(DOORS)
        for key in range(DOORS)
    }
    assert max(fits.values()) == min(fits.values()) == CEILINGS["no memory"]


def test_ceiling_without_mask() -> None:
    """Dynamic programming: with r rounds to go, wait or try any door with its right key."""
    value = 0.0
    for _ in range(ROUNDS):
        in_reach = [np.mean([door in pair for pair in PAIRS]) for door in range(DOORS)]
        value = max(value, *(p * (1 / ROUNDS + value) for p in in_reach))
    assert value == pytest.approx(CEILINGS["no mask"])


def test_ceiling_with_independent_heads() -> None:
    """The key is drawn from one distribution for all pairs of doors, the door with knowledge of the pair.

    For a given distribution the best door of each pair is the one whose key is likelier. The result is convex in the
    distribution (a mean of maxima), so a corner is best: always the same key.
    """
    best = max(np.mean([max(float(d == favourite) for d in pair) for pair in PAIRS]) for favourite in range(DOORS))
    assert best == CEILINGS["independent heads"]
    mixed = np.random.default_rng(0).dirichlet(np.ones(DOORS), size=1000)
    assert max(np.mean([max(q[a], q[b]) for a, b in PAIRS]) for q in mixed) <= best


def test_passes_the_checker_of_gymnasium_and_is_registered() -> None:
    register_environments()
    register_environments()
    check_env(gym.make("esper/Locksmith-v0").unwrapped)
    envs = make_envs("esper/Locksmith-v0", 2)
    assert EnvironmentAdapter(envs).heads == HEADS
