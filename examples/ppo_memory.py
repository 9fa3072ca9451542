"""CartPole without its velocities: what a policy does not see it must remember.

    python examples/ppo_memory.py

As it stands the run is short and only shows how it is done. With ``TOTAL_STEPS = 150_000`` (about a minute) the
recurrent policy balances for 500 steps, and one without memory (``NetworkOptions(memory="none")``) for about 45.
"""

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformObservation

from esper import simic

TOTAL_STEPS = 4_096


class PositionsOnly(TransformObservation):
    """Shows the positions of the cart and of the pole."""

    def __init__(self) -> None:
        space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
        super().__init__(gym.make("CartPole-v1"), lambda observation: observation[[0, 2]], space)


gym.register("PositionsOnly-v0", entry_point=PositionsOnly)

config = simic.TrainConfig(total_steps=TOTAL_STEPS, ppo=simic.PPOConfig(learning_rate="linear:1e-3"))
result = simic.train("PositionsOnly-v0", config=config, callback=simic.Progress())
print(f"mean return {simic.evaluate(result.policy, 'PositionsOnly-v0', episodes=20).mean_return:.0f}")
