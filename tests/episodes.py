"""Helpers for tests that play episodes: a quick but real task, and comparisons bit for bit."""

import numpy as np

from esper.actions import Decision
from esper.lifecycle import Op
from esper.tamiyo.policy.rules import RandomPolicy
from esper.tasks import get_task


def quick_task(name="digits", horizon=8):
    """The named task with short episodes of two batches a decision."""
    task = get_task(name)
    task.horizon, task.steps_per_decision, task.batch_size = horizon, 2, 32
    return task


def eager(run):
    """Germinates the first thing that fits, and lets every seed in.

    A rule of a user's own, which the command line finds by its name.
    """
    return run.first_allowed(Op.GERMINATE) or run.first_allowed(Op.ADVANCE) or Decision()


def play(env, policy=None, seed=0, steps=None, policy_seed=0):
    """Play one episode in every row; (list of step results, list of actions)."""
    policy = policy or RandomPolicy()
    observation, _ = env.reset(seed=seed)
    policy.reset(env.num_envs, policy_seed)
    results, actions = [], []
    for _ in range(steps or env.task.horizon):
        action = policy.act(observation)
        results.append(env.step(action))
        actions.append(action)
        observation = results[-1][0]
    return results, actions


def flat(tree):
    """All arrays of a nest of dicts, by path."""
    if isinstance(tree, dict):
        return {f"{k}/{path}" if path else k: leaf for k, v in tree.items() for path, leaf in flat(v).items()}
    return {"": np.asarray(tree)}


def same(a, b):
    """Whether two nests of arrays are equal bit for bit."""
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def linear_price(outcome):
    """A point of score for every hundredth of the host that is added."""
    return outcome.score - (outcome.params - outcome.host_params) / outcome.host_params


def bits(thing):
    """Every bit of what an environment gives, or of a part of it, final observations and infos included."""
    if isinstance(thing, dict):
        return {name: bits(part) for name, part in thing.items()}
    if isinstance(thing, (list, tuple)) or (isinstance(thing, np.ndarray) and thing.dtype.hasobject):
        return [bits(part) for part in thing]
    array = np.asarray(thing)
    return array.dtype.str, array.shape, array.tobytes()
