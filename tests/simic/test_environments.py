"""Environments in every form that a user has them, and runs that go on with other options."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, TransformReward

from esper.simic import (
    Callback,
    EndlessEpisodeWarning,
    NetworkOptions,
    PPOConfig,
    StopTraining,
    TrainConfig,
    evaluate,
    load_bundle,
    train,
)
from esper.simic.environments import named, vectorized
from esper.simic.spaces import EnvironmentAdapter, make_envs

SMALL = NetworkOptions(hidden_dim=16, head_dim=8)


def config(**changes: Any) -> TrainConfig:
    short = {"updates": 2, "num_envs": 2, "num_steps": 16}
    return TrainConfig(**{**short, "network": SMALL, "ppo": PPOConfig(epochs=1, minibatches=2), **changes})


def weights(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


# ---------------------------------------------------------------------- in every form


def test_a_module_is_imported_before_its_environment_is_made(tmp_path: Path, monkeypatch) -> None:
    code = "import gymnasium as gym\ngym.register('Own-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    (tmp_path / "module_of_a_user.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        envs = make_envs("module_of_a_user:Own-v0", 2)
        assert (envs.num_envs, named(envs)) == (2, "Own-v0")
    finally:
        gym.registry.pop("Own-v0", None)
        sys.modules.pop("module_of_a_user", None)
    with pytest.raises(ValueError, match="No module named 'not_there'; expected module:Id-v0"):
        make_envs("not_there:Own-v0", 2)


def test_a_single_environment_is_one_row() -> None:
    env = gym.make("CartPole-v1")
    result = train(env, config=config())
    assert result.env_steps == 3 * 16  # the first rollout only fills the statistics
    assert evaluate(result.policy, env, episodes=2).returns.shape == (2,)
    with pytest.raises(
        TypeError, match=r"expected vector environments, got CartPoleEnv; make one by gymnasium.make_vec"
    ):
        vectorized([env.unwrapped], 1)  # type: ignore[list-item]


def test_environments_are_called_by_id_and_arguments() -> None:
    assert named(make_envs("FrozenLake-v1", 2, map_name="8x8", is_slippery=False)) == (
        "FrozenLake-v1(is_slippery=False, map_name='8x8')"
    )
    assert named(make_envs("CartPole-v1", 2)) == named(vectorized(gym.make("CartPole-v1"), 1)[0]) == "CartPole-v1"


def test_a_return_is_what_was_recorded_inside_of_wrappers_that_change_rewards() -> None:
    inside = [RecordEpisodeStatistics, lambda env: TransformReward(env, lambda reward: reward / 100)]
    result = train(make_envs("CartPole-v1", 4, wrappers=inside), config=config(num_steps=64))
    assert result.metrics[-1]["return"] == result.metrics[-1]["length"] > 5
    clipped = train(make_envs("CartPole-v1", 4, wrappers=inside[1:]), config=config(num_steps=64))
    assert clipped.metrics[-1]["return"] == pytest.approx(clipped.metrics[-1]["length"] / 100)


def test_an_evaluation_that_walks_in_circles_ends(random_policy) -> None:
    envs = make_envs("CliffWalking-v1", 3)
    policy = random_policy(EnvironmentAdapter(envs))
    for parameter in policy.network.tree.output.parameters():
        torch.nn.init.zeros_(parameter)  # always up, against the wall
    with pytest.warns(EndlessEpisodeWarning, match=r"3 episodes were cut after max_steps=50 .* and 2 were not played"):
        result = evaluate(policy, envs, episodes=5, max_steps=50)
    assert result.lengths.tolist() == [50] * 3
    assert result.returns.tolist() == [-50] * 3
    with pytest.raises(ValueError, match="max_steps: expected at least 1"):
        evaluate(policy, envs, max_steps=0)


# ---------------------------------------------------------------------- devices


def test_a_device_that_is_not_here_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device: 'cuda' is not here, PyTorch sees 0 GPUs; use 'auto' or 'cpu'"):
        train("CartPole-v1", config=config(device="cuda"))
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu', 'cuda' or 'cuda:0', got 'gpu'"):
        config(device="gpu").find_device()
    assert config(device="auto").find_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert config(device="auto").find_device() == torch.device("cuda")
    assert config(device="cuda:0").find_device() == torch.device("cuda:0")


# ---------------------------------------------------------------------- ending early, and going on


class Ending(Callback):
    """Raises ``error`` at the end of update ``at``, or within the one that follows."""

    def __init__(self, at: int, error: Exception, *, within: bool = False) -> None:
        self.at, self.error, self.within, self.updates = at, error, within, 0

    def on_step(self) -> None:
        if self.within and self.updates == self.at:
            raise self.error

    def on_update(self, metrics: Mapping[str, float]) -> None:
        self.updates += 1
        if not self.within and self.updates == self.at:
            raise self.error


@pytest.mark.parametrize("within", [False, True], ids=["after an update", "within a rollout"])
def test_a_callback_that_fails_or_stops_loses_no_update(tmp_path: Path, *, within: bool) -> None:
    long = config(updates=5, checkpoint_every=100)
    stopped = train(
        "CartPole-v1", config=long, run_dir=tmp_path / "a", callback=Ending(3, StopTraining(), within=within)
    )
    assert [row["update"] for row in stopped.metrics] == [1, 2, 3]
    assert torch.equal(weights(load_bundle(tmp_path / "a")), weights(stopped.policy))
    with pytest.raises(RuntimeError, match="broken"):
        train(
            "CartPole-v1",
            config=long,
            run_dir=tmp_path / "b",
            callback=Ending(3, RuntimeError("broken"), within=within),
        )
    for name in "ab":
        rest = train("CartPole-v1", config=long, run_dir=tmp_path / name, resume=True)
        assert [row["update"] for row in rest.metrics] == [4, 5]
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["update"] for row in rows] == [1, 2, 3, 4, 5]


def test_a_callback_knows_the_policy() -> None:
    class Keeps(Callback):
        def on_start(self, plan) -> None:
            self.policy = plan.policy

    keeps = Keeps()
    assert train("CartPole-v1", config=config(), callback=keeps).policy is keeps.policy


def test_a_run_goes_on_with_other_rates_lengths_and_environments(tmp_path: Path, caplog) -> None:
    first = config(updates=None, total_steps=4 * 32)
    train("CartPole-v1", config=first, run_dir=tmp_path)
    other = config(
        updates=None,
        total_steps=4 * 32 + 3 * 24,
        num_envs=3,
        num_steps=8,
        ppo=PPOConfig(learning_rate=1e-4, clip=0.1, gae_lambda=0.9, epochs=2, minibatches=2),
    )
    with caplog.at_level(logging.WARNING):
        rest = train("CartPole-v1", config=other, run_dir=tmp_path, resume=True)
    assert [row["update"] for row in rest.metrics] == [5, 6, 7]
    assert {row["learning_rate"] for row in rest.metrics} == {1e-4}
    assert "ppo.learning_rate=0.0001 (it was linear:3e-4)" in caplog.text
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["train"]["ppo"]["learning_rate"] == 1e-4
    for fixed in (
        {"ppo": PPOConfig(gamma=0.9)},
        {"network": NetworkOptions(hidden_dim=8)},
        {"normalize_rewards": False},
    ):
        with pytest.raises(ValueError, match=r"what cannot change is seed, network, .*, paired, overlap, ppo.gamma"):
            train("CartPole-v1", config=config(**fixed), run_dir=tmp_path, resume=True)


def test_environments_that_know_their_state_begin_anew_in_another_number(tree_world, mode, tmp_path, caplog) -> None:
    train(tree_world(4, mode), config=config(), run_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        rest = train(tree_world(2, mode), config=config(updates=3), run_dir=tmp_path, resume=True)
    assert [row["update"] for row in rest.metrics] == [3]
    assert "another number of environments: its episodes begin anew" in caplog.text
    assert np.isfinite(rest.metrics[0]["value_loss"])
