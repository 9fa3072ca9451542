"""Train sb3-contrib's MaskablePPO on the growth environment, through a wrapper that flattens actions and masks.

    python examples/growth_with_maskable_ppo.py

MaskablePPO masks every dimension of a MultiDiscrete action by itself, but which slots are legal depends on the op, and
which blueprints on the slot: masked one by one, the dimensions would still combine to illegal actions. So the wrapper
offers one Discrete choice instead: the list of all ops with their slots and blueprints, each of which is legal or not
as a whole. The heads that are always free to choose (style, tempo, curve, alpha target) stay at a fixed value, which
keeps the list short: 1 + 13·S germinations and 4·S other moves.
"""

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO

from esper import Decision, Op  # importing esper registers the environment
from esper.actions import BLUEPRINT_NAMES
from esper.env import find_illegal
from esper.tasks import get_task

TOTAL_STEPS = 128  # two updates show how it is done; learning takes many more


class FlatGrowth(gym.Wrapper):
    """Box observations (features, then one-hot blueprints) and one Discrete action, with ``action_masks()``."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.num_slots = env.observation_space["blueprints"].shape[0]
        self.decisions = [Decision(Op.WAIT)]
        for slot in range(self.num_slots):
            self.decisions += [Decision(Op.GERMINATE, slot, b) for b in range(len(BLUEPRINT_NAMES))]
            self.decisions += [Decision(op, slot) for op in (Op.ADVANCE, Op.SET_ALPHA_TARGET, Op.PRUNE, Op.FOSSILIZE)]
        self.action_space = gym.spaces.Discrete(len(self.decisions))
        features = env.observation_space["features"]
        blueprints = self.num_slots * len(BLUEPRINT_NAMES)
        low = np.concatenate([features.low, np.zeros(blueprints, np.float32)])
        high = np.concatenate([features.high, np.ones(blueprints, np.float32)])
        self.observation_space = gym.spaces.Box(low, high)

    def reset(self, **kwargs):
        """As of the environment, flattened."""
        observation, info = self.env.reset(**kwargs)
        return self._flatten(observation), info

    def step(self, action):
        """Takes the index of a decision."""
        observation, *rest = self.env.step(self.decisions[action].to_mapping())
        return self._flatten(observation), *rest

    def action_masks(self) -> np.ndarray:
        """Which decisions are legal now."""
        return np.array([find_illegal(decision, self._masks) is None for decision in self.decisions])

    def _flatten(self, observation):
        self._masks = observation["action_mask"]
        kinds = np.arange(len(BLUEPRINT_NAMES))
        one_hot = observation["blueprints"][:, None] == kinds  # all zeros for an empty slot
        return np.concatenate([observation["features"], one_hot.ravel()]).astype(np.float32)


task = get_task("wine")
task.horizon, task.steps_per_decision = 8, 4  # short episodes, so that this example is quick
env = FlatGrowth(gym.make("esper/Growth-v0", task=task))
model = MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=2, gamma=1.0, seed=0, device="cpu")
model.learn(TOTAL_STEPS)

observation, info = env.reset(seed=1)
total, done = 0.0, False
while not done:
    action, _ = model.predict(observation, action_masks=env.action_masks(), deterministic=True)
    observation, reward, done, _, info = env.step(int(action))
    total += reward
print(f"J {total:.3f}: validation score {info['score']:.3f} with {info['added_params']} added parameters")
