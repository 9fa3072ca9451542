"""A small environment that takes memory, masks and dependent heads: each of the three, or it is not solved.

Registered with Gymnasium as ``esper/Locksmith-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from esper.heads import Head, HeadTable

DOORS = 4
ROUNDS = 8

HEADS = HeadTable(
    [
        Head("door", 1 + DOORS, choices=("wait", *(f"door {d}" for d in range(1, 1 + DOORS)))),
        Head("key", DOORS, parent="door", used_when={"door": range(1, 1 + DOORS)}),
    ]
)
"""Which door to open, if any, and then with which key."""

CEILINGS: dict[str, float] = {
    "memory, masks and dependent heads": 1.0,
    "no memory": 1 / DOORS,
    "no mask": (1 - 0.5**ROUNDS) / ROUNDS,
    "independent heads": 0.5,
}
"""The highest mean return that any policy can reach, and what is left of it without each of the three abilities.

* *No memory*: while doors are opened the observation is always the same, so every key fits with probability 1/4.
* *No mask*: any door is in reach with probability 1/2, and the first one that is not ends the episode, so round i is
  survived with probability 2⁻ⁱ.
* *Independent heads*: the key must be drawn without knowing which door was. The best is to favour one door and to hold
  its key always, which fits when that door is in reach: with probability 1/2.
"""


class Locksmith(gym.Env):
    """Four doors, four keys, and two doors in reach at a time.

    First every door is shown with the key that opens it, one door per step; all that may be done is to wait. Then come
    eight rounds without anything to see. In each, two doors drawn at random are in reach, and the action mask is all
    that tells which. Opening one of them with its key earns 1/8; a wrong key or waiting earns nothing; reaching for a
    door that is out of reach (which only an agent that ignores the mask can do) ends the episode.

    Observation: ``Dict(door, key, action_mask)``. ``door`` is 0 for none or the number of the door that is shown,
    ``key`` is 0 or the number of its key, ``action_mask["door"]`` is the mask of the first head.
    Action: ``Dict(door, key)``: 0 to wait or the number of a door, and the key (number less one); see :data:`HEADS`.

    The highest mean return is 1; :data:`CEILINGS` lists what is left of it without memory, mask or dependent heads.

    Example:
        >>> env = Locksmith()
        >>> observation, _ = env.reset(seed=1)
        >>> observation["door"], observation["action_mask"]["door"].tolist()
        (np.int64(1), [1, 0, 0, 0, 0])
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by gymnasium.Env)
        "render_modes": [],
        "heads": HEADS.to_json(),
    }

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "door": spaces.Discrete(1 + DOORS),
                "key": spaces.Discrete(1 + DOORS),
                "action_mask": spaces.Dict({"door": spaces.MultiBinary(1 + DOORS)}),
            }
        )
        self.action_space = spaces.Dict({head.name: spaces.Discrete(head.num_choices) for head in HEADS})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin an episode with a new key for every door."""
        super().reset(seed=seed)
        self._key_of = self.np_random.permutation(DOORS)
        self._step = 0
        return self._observe(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        """Wait, or try a key in a door."""
        door, key = int(action["door"]), int(action["key"])
        illegal = not self._mask[door]
        opened = not illegal and door > 0 and key == self._key_of[door - 1]
        self._step += 1
        over = illegal or self._step == DOORS + ROUNDS
        return self._observe(), float(opened) / ROUNDS, over, False, {}

    def _observe(self) -> dict[str, Any]:
        showing = self._step < DOORS
        self._mask = np.zeros(1 + DOORS, dtype=np.int8)
        self._mask[0] = 1
        if not showing:
            self._mask[1 + self.np_random.choice(DOORS, size=2, replace=False)] = 1
        return {
            "door": np.int64(1 + self._step if showing else 0),
            "key": np.int64(1 + self._key_of[self._step] if showing else 0),
            "action_mask": {"door": self._mask.copy()},
        }


def register_environments() -> None:
    """Make the small environments of this package known to Gymnasium; calling it again changes nothing."""
    for name in ("Archer", "Locksmith"):
        if f"esper/{name}-v0" not in gym.registry:
            gym.register(f"esper/{name}-v0", entry_point=f"esper.simic.{name.lower()}:{name}")
