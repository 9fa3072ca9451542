"""Collecting rollouts from one vector environment.

Legend: T steps, K environments.

Episodes end by themselves and the environments begin new ones, in one of two ways. With *same-step* autoreset the step
that ends an episode already returns the first observation of the next one, and the final observation lies in
``infos["final_obs"]``. With *next-step* autoreset it returns the final observation, and the following step ignores its
action and returns the first observation of the next episode: a row that belongs to no episode. It is marked as not
valid, and appears in no loss, statistic or return; its value of the final observation is what a truncated episode
bootstraps from.

An environment that offers a second objective (:data:`~esper.simic.training.hindsight.OTHER_OBJECTIVE`) gives two
rollouts in one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from esper.simic.interface import SpacesInterface
from esper.simic.rollout_buffer import RolloutBuffer, Transition
from esper.simic.spaces import EnvironmentAdapter, autoreset_mode
from esper.simic.training.hindsight import OTHER_OBJECTIVE, Hindsight
from esper.simic.training.phases import Phases
from esper.simic.training.stepping import emptied, final_values, value
from esper.tamiyo.networks.action_tree import Noise, correlate, noise_for
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput

EPISODE_METRICS = "episode_metrics"
"""Key in ``infos`` (or, after same-step autoreset, in ``infos["final_info"]``) of a mapping from a name to numbers [K].

They are read for the environments whose episode the step has ended, and averaged over episodes as ``episode/{name}``.
A single ``gymnasium.Env`` returns ``info["episode_metrics"] = {"score": 0.9}`` on its last step; Gymnasium's vector
environments turn that into this form.
"""


RECORDED = "episode"
"""Key in ``infos``, as above, of return ("r") and length ("l") as ``RecordEpisodeStatistics`` of Gymnasium saw them.

They stand in for the sums of what the trainer was given, which wrappers further out may have clipped or scaled.
"""


class Interrupted(Exception):
    """Raised by :meth:`Collector.collect` when it was asked to stop; the rollout is of no use."""


@dataclass
class Episode:
    """One finished episode."""

    environment: int
    """Which of the K environments played it."""
    reward: float
    """Sum of its rewards, as the environment gave them, or as it was :data:`RECORDED`."""
    length: int
    """Its steps."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the environment said of it, see :data:`EPISODE_METRICS`."""


class Collector:
    """Steps one vector environment with a policy, and remembers between rollouts where it stands.

    Args:
        envs: The environments.
        adapter: Between them and the policy.
        num_steps: T, steps of one rollout.
        noise_correlation: That of numbers, see :attr:`TrainConfig.noise_correlation`.

    Raises:
        ValueError: When the environments do not say how they begin new episodes, or when noise is to be correlated and
            no action holds numbers.
    """

    def __init__(
        self, envs: VectorEnv, adapter: EnvironmentAdapter, num_steps: int, *, noise_correlation: float = 0.0
    ) -> None:
        if noise_correlation and all(head.kind != "gaussian" for head in adapter.heads):
            raise ValueError(
                f"noise_correlation={noise_correlation} is about numbers (Box actions), and there are none in the "
                f"action space {envs.single_action_space}; leave it at 0"
            )
        self.envs, self.adapter, self.num_steps = envs, adapter, num_steps
        self.noise_correlation = noise_correlation
        self.next_step = autoreset_mode(envs) is AutoresetMode.NEXT_STEP
        self.episodes: list[Episode] = []
        """Episodes that ended during the last rollout."""
        self.hindsight: Hindsight | None = None
        """Judges the same steps under another objective, if the environments offer one."""

    def reset(self, policy: LSTMPolicyBundle, seed: int) -> None:
        """Begin a new episode everywhere."""
        observation, infos = self.envs.reset(seed=seed)
        k = self.envs.num_envs
        self._inputs = self.adapter.encode(observation, infos)
        self._hidden = policy.initial_hidden(k)
        self._episode_starts = np.ones(k, dtype=bool)
        self._resetting = np.zeros(k, dtype=bool)
        self._rewards = np.zeros(k)
        self._lengths = np.zeros(k, dtype=np.int64)
        if OTHER_OBJECTIVE in infos:
            self.hindsight = Hindsight(self.adapter, infos, policy)

    # ------------------------------------------------------------------ a rollout

    def collect(
        self,
        policy: LSTMPolicyBundle,
        generator: torch.Generator,
        *,
        gamma: float,
        gae_lambda: float,
        reward_scale: float = 1.0,
        paired: bool = False,
        deterministic: bool = False,
        phases: Phases | None = None,
        on_step: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> RolloutBuffer:
        """T steps of every environment, with their advantages; :attr:`hindsight` has followed.

        What takes how long is noted in ``phases``.

        Raises:
            Interrupted: When ``should_stop`` said so before a step.
        """
        self.buffer = RolloutBuffer(self.num_steps, self.envs.num_envs, self.adapter.heads)
        if self.hindsight is not None:
            self.hindsight.begin(self.num_steps)
        self.episodes = []
        self.phases = phases or Phases()
        self.phases.begin()
        for noise in [None] * self.num_steps if deterministic else self._noise(generator):
            if should_stop():
                raise Interrupted
            self._step(policy, noise)
            on_step()
        self.phases.end("copy")
        self.buffer.close(policy.judge)
        self.buffer.finish(value(policy, self._inputs, self._hidden), gamma, gae_lambda, reward_scale, paired=paired)
        if self.hindsight is not None:
            self.hindsight.finish(
                policy,
                self._inputs,
                self.buffer,
                gamma=gamma,
                gae_lambda=gae_lambda,
                reward_scale=reward_scale,
                paired=paired,
            )
        self.phases.end("policy")
        return self.buffer

    def _noise(self, generator: torch.Generator) -> list[Noise]:
        """What decides the draws of each step; that of the whole rollout is drawn at once."""
        adapter, rows = self.adapter, (self.num_steps, self.envs.num_envs)
        of_head = noise_for(adapter.heads, adapter.num_slots, rows, adapter.device, generator)
        if self.noise_correlation:
            of_head = correlate(of_head, adapter.heads, self.noise_correlation)
        steps = zip(*[x.unbind(0) for x in of_head.values()], strict=True)
        return [dict(zip(of_head, step, strict=True)) for step in steps]

    def _step(self, policy: LSTMPolicyBundle, noise: Noise | None) -> None:
        self.phases.end("copy")
        actions, core, hidden = policy.step(self._inputs, self._hidden, noise)
        self.phases.end("policy")
        taken = self.adapter.decode(actions)
        self.phases.end("copy")
        observation, rewards, terminated, truncated, infos = self.envs.step(taken)
        self.phases.end("environment")
        valid = ~self._resetting
        terminated, truncated = terminated & valid, truncated & valid
        rewards = np.where(valid, rewards, 0.0)
        self._check_rewards(rewards)
        cut = truncated & ~terminated
        transition = Transition(
            inputs=self._inputs,
            hidden=self._hidden,
            actions=actions,
            core=core,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            episode_starts=self._episode_starts,
            valid=valid,
            final_values=None if self.next_step else final_values(policy, self.adapter, hidden, cut, infos),
        )
        self.buffer.add(transition)
        self._note_episodes(rewards, valid, terminated | truncated, infos)
        self._hidden = hidden
        self._advance(observation, infos, terminated, truncated)
        if self.hindsight is not None:
            self.phases.end("copy")
            ignore = terminated if self.next_step else None
            self.hindsight.add(policy, transition, infos, begins=self._episode_starts, ignore=ignore)
            self.phases.end("policy")

    def _advance(
        self, observation: Any, infos: Mapping[str, Any], terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        """Be ready for the next step."""
        ended = terminated | truncated
        self._episode_starts = self._resetting if self.next_step else ended
        self._resetting = ended if self.next_step else np.zeros_like(ended)
        ends = {"ignore": terminated, "last": truncated & ~terminated} if self.next_step else {}
        self._inputs = self.adapter.encode(observation, infos, **ends)
        self._hidden = emptied(self._hidden, self._episode_starts)

    # ------------------------------------------------------------------ episodes

    def _check_rewards(self, rewards: np.ndarray) -> None:
        finite = np.isfinite(rewards)
        if not finite.all():
            bad = int(finite.argmin())
            raise ValueError(f"environment {bad} gave a reward of {rewards[bad]}; rewards must be finite numbers")

    def _note_episodes(
        self, rewards: np.ndarray, valid: np.ndarray, ended: np.ndarray, infos: Mapping[str, Any]
    ) -> None:
        self._rewards += rewards
        self._lengths += valid
        if not ended.any():
            return
        for k in np.flatnonzero(ended):
            recorded = _reported(infos, RECORDED, int(k))
            reward = recorded.get("r", float(self._rewards[k]))
            length = int(recorded.get("l", self._lengths[k]))
            self.episodes.append(Episode(int(k), reward, length, _reported(infos, EPISODE_METRICS, int(k))))
        self._rewards[ended] = 0.0
        self._lengths[ended] = 0

    def running(self) -> list[Episode]:
        """The episodes that have not ended, as far as they have come."""
        return [
            Episode(k, float(reward), int(length))
            for k, (reward, length) in enumerate(zip(self._rewards, self._lengths, strict=True))
        ]

    # ------------------------------------------------------------------ state

    def interface(self, own_encoders: tuple[str, ...]) -> SpacesInterface:
        """What a policy has to know of the environments, masks as they come at present."""
        masks = {head: tuple(mask.shape[1:]) for head, mask in self._inputs.masks.items() if mask is not None}
        observation_space, action_space = self.envs.single_observation_space, self.envs.single_action_space
        return SpacesInterface(observation_space, action_space, self.adapter.heads, masks, own_encoders)

    @property
    def resumable(self) -> bool:
        """Whether the environments can give and take their state."""
        return hasattr(self.envs, "state_dict") and hasattr(self.envs, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from, as a copy; ``None`` for environments that cannot give their state."""
        return {
            "envs": copy.deepcopy(self.envs.state_dict()) if self.resumable else None,  # type: ignore[attr-defined]
            "inputs": self._inputs._asdict(),
            "hidden": [part.clone() for part in self._hidden],
            "episode_starts": self._episode_starts.copy(),
            "resetting": self._resetting.copy(),
            "rewards": self._rewards.copy(),
            "lengths": self._lengths.copy(),
            "hindsight": None if self.hindsight is None else self.hindsight.state_dict(),
        }

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether ``state`` is of as many environments as these."""
        return len(state["lengths"]) == self.envs.num_envs

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` that :meth:`fits`, for environments that are :attr:`resumable`."""
        self.envs.load_state_dict(state["envs"])  # type: ignore[attr-defined]
        device = self.adapter.device
        self._inputs = PolicyInput(**state["inputs"]).map(lambda x: x.to(device))
        self._hidden = (state["hidden"][0].to(device), state["hidden"][1].to(device))
        self._episode_starts, self._resetting = state["episode_starts"], state["resetting"]
        self._rewards, self._lengths = state["rewards"], state["lengths"]
        if self.hindsight is not None:
            self.hindsight.load_state_dict(state["hindsight"])


def _reported(infos: Mapping[str, Any], key: str, k: int) -> dict[str, float]:
    """What environment k, whose episode has ended, said under ``key``: one number per name."""
    values = infos.get("final_info", {}).get(key) or infos.get(key) or {}
    return {
        name: float(numbers[k])
        for name, numbers in values.items()
        if not name.startswith("_") and values.get(f"_{name}", np.ones(k + 1, bool))[k]
    }
