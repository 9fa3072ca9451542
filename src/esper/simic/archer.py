"""A small environment that takes memory, masks, dependent heads and a number: each of the four, or it is not solved.

Registered with Gymnasium as ``esper/Archer-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from esper.heads import Head, HeadTable

DISTANCES = (-0.6, -0.2, 0.2, 0.6)
"""Of the targets, each at another; 0 is the middle of the field."""
TARGETS = len(DISTANCES)
ROUNDS = 8
WIDTH = 0.4
"""How far off a shot may be before it earns nothing: as far as the next distance."""

HEADS = HeadTable(
    [
        Head("act", 2, choices=("wait", "shoot")),
        Head("target", TARGETS, parent="act", used_when={"act": (1,)}),
        Head("range", 1, kind="gaussian", parent="target", used_when={"act": (1,)}),
    ]
)
"""Whether to shoot, at which target, and how far."""

CEILINGS: dict[str, float] = {
    "everything": 1.0,
    "no memory": 1 / TARGETS,
    "no mask": (1 - 0.5**ROUNDS) / ROUNDS,
    "independent heads": 0.5,
    "no number": 0.5 * 5 / 6,
}
"""The highest mean return that any policy can reach, and what is left of it without each of the four abilities.

* *No memory*: while there are shots the observation is always the same, and every distance is equally likely for every
  target. Whatever the range, from −0.6 to 0.6, it earns 1/4 on average: all of one distance or a share each of two.
* *No mask*: any target is in sight with probability 1/2, and the first one that is not ends the episode, so round i is
  survived with probability 2⁻ⁱ.
* *Independent heads*: the range must be drawn without knowing at which target. The best is to favour one target and to
  shoot as far as it is, which earns 1 when it is in sight: with probability 1/2.
* *No number*: the range is always the middle, 0, which is half a width from two of the distances. One of the two is in
  sight with probability 5/6, and earns 1/2.
"""


class Archer(gym.Env):
    """Four targets at four distances, two of them in sight at a time.

    First every target is shown with its distance, one per step; all that may be done is to wait. Then come eight rounds
    without anything to see. In each, two targets drawn at random are in sight, and the action mask is all that tells
    which. A shot at one of them earns 1/8 when its range is the target's distance, and less the further off it is, down
    to nothing at :data:`WIDTH`. Waiting earns nothing. A shot at what is not in sight (which only an agent that ignores
    the mask can do) ends the episode.

    Observation: ``Dict(target, distance, action_mask)``. ``target`` is 0 for none or the number of the target that is
    shown, ``distance`` is [1], its distance or 0, ``action_mask`` has the masks of the first two heads.
    Action: ``Dict(act, target, range)``: 0 to wait or 1 to shoot, the target (number less one), and [1] from −1 to 1;
    see :data:`HEADS`.

    The highest mean return is 1; :data:`CEILINGS` lists what is left of it without memory, mask, dependent heads or the
    number.

    Example:
        >>> env = Archer()
        >>> observation, _ = env.reset(seed=1)
        >>> observation["target"], observation["action_mask"]["act"].tolist()
        (np.int64(1), [1, 0])
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by gymnasium.Env)
        "render_modes": [],
        "heads": HEADS.to_json(),
    }

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "target": spaces.Discrete(1 + TARGETS),
                "distance": spaces.Box(-1, 1, (1,), np.float32),
                "action_mask": spaces.Dict({"act": spaces.MultiBinary(2), "target": spaces.MultiBinary(TARGETS)}),
            }
        )
        self.action_space = spaces.Dict(
            {
                "act": spaces.Discrete(2),
                "target": spaces.Discrete(TARGETS),
                "range": spaces.Box(-1, 1, (1,), np.float32),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Begin an episode with another distance for every target."""
        super().reset(seed=seed)
        self._distances = self.np_random.permutation(DISTANCES)
        self._step = 0
        return self._observe(), {}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        """Wait, or shoot."""
        shoots, target = int(action["act"]) == 1, int(action["target"])
        out_of_sight = shoots and not self._in_sight[target]
        earned = 0.0
        if shoots and not out_of_sight:
            earned = points(float(action["range"][0]), self._distances[target]) / ROUNDS
        self._step += 1
        over = out_of_sight or self._step == TARGETS + ROUNDS
        return self._observe(), earned, over, False, {}

    def _observe(self) -> dict[str, Any]:
        showing = self._step < TARGETS
        self._in_sight = np.zeros(TARGETS, dtype=np.int8)
        if not showing:
            self._in_sight[self.np_random.choice(TARGETS, size=2, replace=False)] = 1
        # While nothing is in sight nobody can shoot, so that the mask of the targets means nothing.
        targets = np.ones(TARGETS, dtype=np.int8) if showing else self._in_sight.copy()
        return {
            "target": np.int64(1 + self._step if showing else 0),
            "distance": np.array([self._distances[self._step] if showing else 0], np.float32),
            "action_mask": {"act": np.array([1, not showing], np.int8), "target": targets},
        }


def points(shot: float, distance: float) -> float:
    """What a shot of this range earns at a target of this distance: 1 for a hit, down to 0 at :data:`WIDTH`."""
    return max(0.0, 1.0 - abs(shot - distance) / WIDTH)
