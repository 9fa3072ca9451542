"""Masks in every form that environments give them: whatever the form, no illegal action is taken."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from esper.heads import Head, HeadTable
from esper.simic import NetworkOptions, TrainConfig, evaluate, train
from esper.simic.spaces import EnvironmentAdapter

BOX = spaces.Box(-1, 1, (2,))
SMALL = TrainConfig(updates=2, num_envs=4, num_steps=16, network=NetworkOptions(hidden_dim=8, head_dim=8))


class Forbidding(gym.Env):
    """One of three actions is legal at a time, and it refuses the others; six steps. ``form`` is where it says so.

    The last observation allows nothing: there is nothing left to do.
    """

    def __init__(self, form: str, ends: str = "truncated") -> None:
        self.form, self.ends = form, ends
        shown = {"seen": BOX} | ({"action_mask": spaces.MultiBinary(3)} if form == "observation" else {})
        self.observation_space, self.action_space = spaces.Dict(shown), spaces.Discrete(3, start=1)
        if form == "method":
            self.action_masks = self.mask

    def mask(self) -> np.ndarray:
        return (np.arange(3) == self.legal) & (self.step_number < 6)

    def told(self) -> tuple[dict, dict]:
        observation: dict[str, Any] = {"seen": self.np_random.uniform(-1, 1, 2).astype(np.float32)}
        if self.form == "observation":
            observation["action_mask"] = self.mask().astype(np.int8)
        forms = {"info": {"action_mask": self.mask()}, "plural": {"action_masks": self.mask()}}
        forms["list"] = {"action_masks": self.mask().tolist()}
        return observation, forms.get(self.form, {})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.legal = 0, int(self.np_random.integers(3))
        return self.told()

    def step(self, action):
        assert action - 1 == self.legal, "an illegal action"
        self.step_number += 1
        self.legal = int(self.np_random.integers(3))
        over = self.step_number == 6
        observation, info = self.told()
        return observation, 1.0, over and self.ends == "terminated", over and self.ends == "truncated", info


def sync(form: str, mode: AutoresetMode = AutoresetMode.SAME_STEP, **options: Any) -> VectorEnv:
    return SyncVectorEnv([lambda: Forbidding(form, **options)] * 4, autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=["same_step", "next_step"])
@pytest.mark.parametrize("ends", ["truncated", "terminated"])
@pytest.mark.parametrize("form", ["observation", "info", "plural", "list", "method"])
def test_no_illegal_action_is_taken_whatever_the_form(form: str, ends: str, mode: AutoresetMode) -> None:
    """In training over ends of episodes, whose last observation allows nothing, and in evaluation."""
    policy = train(sync(form, mode, ends=ends), config=SMALL).policy
    assert evaluate(policy, sync(form, mode, ends=ends), episodes=5).returns.tolist() == [6.0] * 5


def test_the_method_is_asked_in_other_processes_too() -> None:
    envs = AsyncVectorEnv([lambda: Forbidding("method")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert evaluate(train(envs, config=SMALL).policy, envs, episodes=2).returns.tolist() == [6.0] * 2
    envs.close()


def test_a_vector_environment_may_have_the_method_itself() -> None:
    envs = sync("none")
    envs.action_masks = lambda: np.stack([env.unwrapped.mask() for env in envs.envs])  # type: ignore[attr-defined]
    assert evaluate(train(envs, config=SMALL).policy, envs, episodes=3).returns.tolist() == [6.0] * 3


# ---------------------------------------------------------------------- forms by head


def adapter_for(action: spaces.Space, heads: HeadTable | None = None) -> EnvironmentAdapter:
    class Still(gym.Env):
        observation_space, action_space = BOX, action

    return EnvironmentAdapter(SyncVectorEnv([Still] * 2, autoreset_mode=AutoresetMode.SAME_STEP), heads)


def read(adapter: EnvironmentAdapter, mask: Any, **infos: Any) -> dict[str, Any]:
    inputs = adapter.encode(np.zeros((2, 2), np.float32), {"action_mask": mask} | infos)
    return {name: None if m is None else m.tolist() for name, m in inputs.masks.items()}


def test_masks_of_a_tree_are_read_by_path_and_numbers_have_none() -> None:
    adapter = adapter_for(
        spaces.Dict(
            {
                "arm": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,))]),
                "dice": spaces.MultiDiscrete([2, 3]),
                "lamps": spaces.MultiBinary(2),
            }
        )
    )
    assert adapter.heads.names == ("arm/0", "arm/1", "dice_0", "dice_1", "lamps")
    row = np.array([[1, 0]] * 2)
    lamps = [[[True, False], [True, True]]] * 2
    expected = {"arm/0": [[True, False]] * 2, "arm/1": None, "dice_0": [[True, False]] * 2}
    expected |= {"dice_1": [[False, True, True]] * 2, "lamps": lamps}
    dice, bits = np.array([[1, 0, 0, 1, 1]] * 2), np.array([[1, 0, 1, 1]] * 2)
    assert read(adapter, {"arm": {"0": row}, "dice": dice, "lamps": bits}) == expected
    assert read(adapter, {"arm/0": row, "dice": dice, "lamps": bits.reshape(2, 2, 2)}) == expected
    assert read(adapter, np.concatenate([row, dice, bits], axis=-1)) == expected
    with pytest.raises(ValueError, match="mask of head 'arm/1': numbers have no mask; leave it out, narrow the bounds"):
        read(adapter, {"arm/1": row})


def test_a_mask_of_bits_may_hang_on_the_parent() -> None:
    heads = HeadTable([Head("verb", 2), Head("lamps", 3, kind="bernoulli", parent="verb")])
    adapter = adapter_for(spaces.Dict({"verb": spaces.Discrete(2), "lamps": spaces.MultiBinary(3)}), heads)
    assert np.shape(read(adapter, {"lamps": np.ones((2, 2, 3, 2), bool)})["lamps"]) == (2, 2, 3, 2)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 2\) or \(2, 2, 3, 2\), got bool \(2, 2, 2\)"):
        read(adapter, {"lamps": np.ones((2, 2, 2), bool)})


# ---------------------------------------------------------------------- who gave one


def test_an_environment_that_gave_no_mask_is_named() -> None:
    """By the flags that Gymnasium keeps beside it; its zeros are no mask."""
    adapter = adapter_for(spaces.Discrete(2))
    mask = np.array([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"environment 1 gave no infos\['action_mask'\] while others did; give it on"):
        read(adapter, mask, _action_mask=np.array([True, False]))


def test_where_an_episode_ends_a_mask_that_is_missing_or_allows_nothing_allows_everything() -> None:
    adapter = adapter_for(spaces.Discrete(2))
    infos = {"action_mask": np.zeros((2, 2), bool), "_action_mask": np.array([True, False])}
    shown = np.zeros((2, 2), np.float32)
    inputs = adapter.encode(shown, infos, last=np.array([True, True]))
    assert inputs.masks["action"].all()
    masked = infos | {"action_mask": np.array([[False, True], [False, False]])}
    assert adapter.encode(shown, masked, last=np.array([True, True])).masks["action"].tolist() == [
        [False, True],
        [True, True],
    ]


def test_in_mid_episode_a_mask_that_allows_nothing_is_refused() -> None:
    class Stuck(Forbidding):
        def mask(self) -> np.ndarray:
            return np.arange(3) == (self.legal if self.step_number < 2 else 9)

    envs = SyncVectorEnv([lambda: Stuck("info")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="the mask of batch row 0 allows no choice, but the head is used"):
        train(envs, config=SMALL)
