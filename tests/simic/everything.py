"""An environment whose observation and action have a leaf of every kind."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Everything(gym.Env):
    """Random observations, episodes of random length, and masks of the first two heads."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (12, 10, 3), np.uint8),
                "pose": spaces.Box(-np.inf, np.inf, (3,), np.float64),
                "place": spaces.Tuple([spaces.Discrete(5, start=1), spaces.MultiDiscrete([3, 4])]),
                "word": spaces.Discrete(100, start=-3),
                "lamps": spaces.MultiBinary(2),
                "action_mask": spaces.Dict({"verb": spaces.MultiBinary(3), "taken": spaces.MultiBinary((2, 2))}),
            }
        )
        self.action_space = spaces.Dict(
            {
                "verb": spaces.Discrete(3, start=1),
                "taken": spaces.MultiBinary(2),
                "cells": spaces.MultiDiscrete([2, 3]),
                "force": spaces.Box(np.float32([-1, 0]), np.float32([1, 5])),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        return self._show(), 0.0, bool(self.np_random.random() < 0.1), False, {}

    def _show(self) -> dict[str, Any]:
        shown = self.observation_space.sample()
        shown["action_mask"] = {
            "verb": np.array([1, *self.np_random.integers(2, size=2)], np.int8),
            "taken": np.array([[1, self.np_random.integers(2)], [self.np_random.integers(2), 1]], np.int8),
        }
        return shown


if "Everything-v0" not in gym.registry:  # a test runner may import this file under more than one name
    gym.register("Everything-v0", Everything)
