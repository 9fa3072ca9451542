"""Environments in every form that a user has them, as vector environments; and what a run calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from esper.simic.spaces import make_envs

Environments = str | gym.Env | VectorEnv | Sequence[VectorEnv]
"""An environment id, a single environment, a vector environment, or several of those."""

_OF_THE_VECTOR = {"num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode", "max_episode_steps"}
_PLAIN = (str, int, float, tuple, list, dict, type(None))


def vectorized(envs: Environments, num_envs: int) -> list[VectorEnv]:
    """``envs`` as vector environments: ``num_envs`` copies of an id, and a single environment as one of one row.

    Raises:
        TypeError: For what is no environment.
        ValueError: When there is no such environment.
    """
    if isinstance(envs, str):
        return [make_envs(envs, num_envs)]
    if isinstance(envs, gym.Env):
        return [SyncVectorEnv([lambda: envs], autoreset_mode=AutoresetMode.SAME_STEP)]
    given = [envs] if isinstance(envs, VectorEnv) else list(envs)
    for each in given:
        if not isinstance(each, VectorEnv):
            raise TypeError(
                f"expected vector environments, got {type(each).__name__}; make one by gymnasium.make_vec(id, num_envs)"
            )
    return given


def named(envs: VectorEnv) -> str:
    """The id that ``envs`` were made by, with the arguments and wrappers they were given; without one their class."""
    base: Any = envs.unwrapped
    spec = base.spec or next((env.spec for env in getattr(base, "envs", ())), None)
    if spec is None:
        return type(base).__name__
    arguments = [
        f"{name}={value!r}" if isinstance(value, _PLAIN) else f"{name}={type(value).__name__}"
        for name, value in sorted(spec.kwargs.items())
        if name not in _OF_THE_VECTOR
    ]
    wrappers = [getattr(each, "__name__", type(each).__name__) for each in spec.kwargs.get("wrappers", ())]
    name = f"{spec.id}({', '.join(arguments)})" if arguments else spec.id
    return f"{name} in {', '.join(wrappers)}" if wrappers else name
