"""A small world in which everything happens that a rollout must survive, and short ways to policies and rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from esper.heads import Head, HeadTable
from esper.simic.control.normalization import RunningMeanStd
from esper.simic.rollout_buffer import RolloutBuffer
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.collector import Collector
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

TREE = HeadTable(
    [
        Head("verb", 3, choices=("wait", "take", "throw")),
        Head("item", 4, parent="verb", used_when={"verb": (1, 2)}),
        Head("force", 2, parent="item", used_when={"verb": (2,)}),
    ]
)
"""A wait uses one head, a take two, a throw three."""


class TreeWorld(VectorEnv):
    """Random features, masks (one of them conditional on its parent), rewards and endings; keeps a log of it all.

    ``log[k]`` has one entry for every observation that environment k has shown:
    ``(features, mask, kind of row, reward that led here)``, with kinds "start", "step", "terminated" and "truncated".
    """

    def __init__(self, num_envs: int, mode: AutoresetMode, end_rate: float = 0.1) -> None:
        self.num_envs, self.mode, self.end_rate = num_envs, mode, end_rate
        self.metadata = {"autoreset_mode": mode, "heads": TREE.to_json()}
        masks = {"verb": spaces.MultiBinary(3), "item": spaces.MultiBinary((3, 4)), "force": spaces.MultiBinary(2)}
        self.single_observation_space = spaces.Dict(
            {"seen": spaces.Box(-np.inf, np.inf, (5,)), "clue": spaces.Discrete(3), "action_mask": spaces.Dict(masks)}
        )
        self.single_action_space = spaces.Dict({h.name: spaces.Discrete(h.num_choices) for h in TREE})
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.log: list[list[tuple]] = [[] for _ in range(num_envs)]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.random = np.random.default_rng(seed)
        self.ended = np.zeros(self.num_envs, dtype=bool)
        self.log = [[] for _ in range(self.num_envs)]
        return self._show(["start"] * self.num_envs, np.zeros(self.num_envs)), {}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        assert self.action_space.contains(actions)
        self._check_legal(actions)
        draw = self.random.random(self.num_envs)
        rewards = self.random.normal(size=self.num_envs) + 0.1 * actions["verb"]
        terminated, truncated = draw < self.end_rate, draw > 1 - self.end_rate
        if self.mode is AutoresetMode.NEXT_STEP:
            terminated &= ~self.ended
            truncated &= ~self.ended
            rewards[self.ended] = 1e6  # whatever a reset row holds, nobody may read it
        kinds = np.where(terminated, "terminated", np.where(truncated, "truncated", "step"))
        if self.mode is AutoresetMode.NEXT_STEP:
            kinds = np.where(self.ended, "start", kinds)
        observation, infos = self._show(kinds.tolist(), rewards), {}
        self.ended = terminated | truncated
        if self.mode is AutoresetMode.SAME_STEP and self.ended.any():
            final = list(iterate(self.observation_space, observation))
            infos["final_obs"] = np.array(
                [o if e else None for o, e in zip(final, self.ended, strict=True)], dtype=object
            )
            infos["final_info"] = self._report()
            first = self._show(["start" if e else None for e in self.ended], np.zeros(self.num_envs))
            observation = _where(self.ended, first, observation)
        elif self.ended.any():
            infos = self._report()
        return observation, rewards, terminated, truncated, infos

    def _report(self) -> dict[str, Any]:
        return {"episode_metrics": {"score": np.arange(self.num_envs) / 10, "_score": self.ended}}

    def _show(self, kinds: list[str | None], rewards: np.ndarray) -> dict[str, Any]:
        k = self.num_envs
        masks = {"verb": (k, 3), "item": (k, 3, 4), "force": (k, 2)}
        shown = {
            "seen": self.random.normal(size=(k, 5)).astype(np.float32),
            "clue": self.random.integers(3, size=k),
            "action_mask": {name: self._mask(shape) for name, shape in masks.items()},
        }
        for i, kind in enumerate(kinds):
            if kind == "terminated":  # what comes after the end means nothing, and nobody may read it
                shown["seen"][i] = np.nan
                for mask in shown["action_mask"].values():
                    mask[i] = 0
            if kind is not None:
                features = np.concatenate([np.eye(3, dtype=np.float32)[shown["clue"][i]], shown["seen"][i]])
                mask = {name: m[i].astype(bool) for name, m in shown["action_mask"].items()}
                self.log[i].append((features, mask, kind, rewards[i]))
        return shown

    def _mask(self, shape: tuple[int, ...]) -> np.ndarray:
        mask = self.random.random(shape) < 0.6
        mask[..., 0] |= ~mask.any(-1)
        return mask.astype(np.int8)

    def _check_legal(self, actions: dict[str, np.ndarray]) -> None:
        for k in range(self.num_envs):
            _, mask, kind, _ = self.log[k][-1]
            if self.mode is AutoresetMode.NEXT_STEP and kind in ("terminated", "truncated"):
                continue
            verb, item, force = (int(actions[h][k]) for h in TREE.names)
            assert mask["verb"][verb]
            assert verb == 0 or mask["item"][verb, item]
            assert verb != 2 or mask["force"][force]

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.bit_generator.state, "ended": self.ended, "last": [rows[-1] for rows in self.log]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random = np.random.default_rng()
        self.random.bit_generator.state = state["random"]
        self.ended = state["ended"]
        self.log = [[row] for row in state["last"]]


def _where(rows: np.ndarray, yes: Any, no: Any) -> Any:
    if isinstance(yes, dict):
        return {key: _where(rows, yes[key], no[key]) for key in yes}
    return np.where(rows.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def make_policy(adapter: EnvironmentAdapter, **network_options: Any) -> LSTMPolicyBundle:
    """A small random policy whose heads are far from uniform, with a normaliser that has seen something."""
    network = FactoredRecurrentActorCritic(
        heads=adapter.heads,
        state_dim=adapter.state_dim,
        num_slots=adapter.num_slots,
        hidden_dim=16,
        head_dim=8,
        **network_options,
    )
    torch.nn.init.normal_(network.tree.output.weight, std=1.0)
    normalizer = RunningMeanStd((adapter.state_dim,))
    normalizer.update(torch.randn(100, adapter.state_dim) * 2 + 1)
    return LSTMPolicyBundle(network, observation_normalizer=normalizer)


def collect(
    envs: VectorEnv, num_steps: int, rollouts: int = 2, **options: Any
) -> tuple[LSTMPolicyBundle, RolloutBuffer, Collector]:
    """The last of some finished rollouts of a random policy; all but the first begin in mid-episode. γ 0.9, λ 0.8."""
    adapter = EnvironmentAdapter(envs)
    policy = make_policy(adapter, **options)
    collector = Collector(envs, adapter, num_steps)
    collector.reset(policy, seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rollouts):
        rollout = collector.collect(policy, generator, gamma=0.9, gae_lambda=0.8)
    return policy, rollout, collector


@pytest.fixture
def tree_world() -> Callable[..., TreeWorld]:
    return TreeWorld


@pytest.fixture
def random_policy() -> Callable[..., LSTMPolicyBundle]:
    return make_policy


@pytest.fixture
def collected() -> Callable[..., tuple[LSTMPolicyBundle, RolloutBuffer, Collector]]:
    return collect


@pytest.fixture(params=[AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=["same_step", "next_step"])
def mode(request: pytest.FixtureRequest) -> AutoresetMode:
    return request.param
