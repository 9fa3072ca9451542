"""How well a policy does: whole episodes, played and added up; and reading a trained policy back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from esper.simic.control.normalization import RunningMeanStd
from esper.simic.spaces import EnvironmentAdapter, make_envs
from esper.simic.training.checkpoint import find_checkpoint
from esper.simic.training.collector import Collector, Episode
from esper.simic.training.run_directory import read_config
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

_STEPS_AT_A_TIME = 64


@dataclass(frozen=True)
class EvaluationResult:
    """N whole episodes."""

    returns: np.ndarray
    """Sum of rewards of each episode, [N]."""
    lengths: np.ndarray = field(repr=False)
    """Steps of each episode, [N]."""
    metrics: dict[str, np.ndarray] = field(repr=False)
    """What the environment reported of each episode, by name, [N]; NaN where it reported nothing."""

    @property
    def mean_return(self) -> float:
        """Mean over the episodes."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean_return`."""
        return float(self.returns.std(ddof=1) / np.sqrt(len(self.returns))) if len(self.returns) > 1 else float("nan")


def evaluate(
    policy: LSTMPolicyBundle,
    envs: str | VectorEnv,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    num_envs: int = 16,
) -> EvaluationResult:
    """Play whole episodes with a policy that does not learn.

    Every environment plays its share of the episodes; taking whichever end first would favour short ones.

    Args:
        policy: The policy.
        envs: An environment id, or a vector environment.
        episodes: N.
        seed: Of the environments and of sampling.
        deterministic: Take the most probable choice of every head instead of drawing one.
        num_envs: Environments side by side, when given by id.

    Raises:
        ValueError: When the environment does not fit the policy.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}")
    given = make_envs(envs, min(num_envs, episodes)) if isinstance(envs, str) else envs
    device = next(policy.network.parameters()).device
    adapter = EnvironmentAdapter(given, policy.heads, device, policy.network.part_encoder.own)
    collector = Collector(given, adapter, _STEPS_AT_A_TIME)
    collector.reset(policy, seed)
    generator = torch.Generator(device).manual_seed(seed)
    share = [episodes // given.num_envs + (k < episodes % given.num_envs) for k in range(given.num_envs)]
    played: list[Episode] = []
    while sum(share) > 0:
        collector.collect(policy, generator, gamma=1.0, gae_lambda=1.0, deterministic=deterministic)
        for episode in collector.episodes:
            if share[episode.environment] > 0:
                share[episode.environment] -= 1
                played.append(episode)
    if isinstance(envs, str):
        given.close()
    names = sorted({name for episode in played for name in episode.metrics})
    return EvaluationResult(
        returns=np.array([episode.reward for episode in played]),
        lengths=np.array([episode.length for episode in played]),
        metrics={name: np.array([episode.metrics.get(name, np.nan) for episode in played]) for name in names},
    )


def load_bundle(run_dir: str | os.PathLike[str], encoders: Mapping[str, nn.Module] | None = None) -> LSTMPolicyBundle:
    """The policy in the last checkpoint of a run directory.

    Args:
        run_dir: The run directory.
        encoders: The modules of your own that it was trained with, if any, by part; their weights are read.

    Raises:
        ValueError: When there is no run, or its checkpoint is damaged.
    """
    config = read_config(run_dir)
    checkpoint = find_checkpoint(Path(run_dir) / "checkpoint")
    normalizer = RunningMeanStd((config.network.state_dim,)) if config.normalizes_observations else None
    return LSTMPolicyBundle.load(checkpoint, observation_normalizer=normalizer, encoders=encoders)
