"""How well a policy does: whole episodes, played and added up; and reading a trained policy back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import RecordVideo
from torch import nn

from esper.simic.control.normalization import RunningMeanStd
from esper.simic.environments import Environments, vectorized
from esper.simic.interface import SpacesInterface
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.checkpoint import find_checkpoint
from esper.simic.training.collector import Collector, Episode
from esper.simic.training.run_directory import read_config
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

_STEPS_AT_A_TIME = 64


class EndlessEpisodeWarning(UserWarning):
    """An episode was cut in evaluation, for it went on and on."""


@dataclass(frozen=True)
class EvaluationResult:
    """N episodes."""

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
    envs: Environments,
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    num_envs: int = 16,
    max_steps: int = 27_000,
) -> EvaluationResult:
    """Play whole episodes with a policy that does not learn.

    Every environment plays its share of the episodes; taking whichever end first would favour short ones.

    Args:
        policy: The policy.
        envs: An environment id, an environment, or a vector environment.
        episodes: N.
        seed: Of the environments and of sampling.
        deterministic: Take the most probable choice of every head instead of drawing one.
        num_envs: Environments side by side, when given by id.
        max_steps: Steps after which an episode is cut (by default what Atari games are given): a policy may walk in
            circles. It counts as far as it came, and its environment plays no more.

    Raises:
        ValueError: When the environment does not fit the policy.

    Warns:
        EndlessEpisodeWarning: When an episode was cut.
    """
    for name, number in (("episodes", episodes), ("max_steps", max_steps)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    given, *others = vectorized(envs, min(num_envs, episodes))
    if others:
        raise ValueError(f"expected one vector environment, got {1 + len(others)}; evaluate on one after the other")
    device = next(policy.network.parameters()).device
    adapter = EnvironmentAdapter(given, policy.heads, device, policy.network.part_encoder.own)
    collector = Collector(given, adapter, min(_STEPS_AT_A_TIME, max_steps))
    collector.reset(policy, seed)
    known = policy.interface.masks if isinstance(policy.interface, SpacesInterface) else {}
    missing = sorted(known.keys() - collector.interface(()).masks.keys())
    if missing:
        raise ValueError(f"expected masks of {missing}, which the policy was trained with, got none from {given}")
    generator = torch.Generator(device).manual_seed(seed)
    share = [episodes // given.num_envs + (k < episodes % given.num_envs) for k in range(given.num_envs)]
    played: list[Episode] = []
    cut = left_out = 0
    while sum(share) > 0:
        collector.collect(policy, generator, gamma=1.0, gae_lambda=1.0, deterministic=deterministic)
        for episode in collector.episodes:
            if share[episode.environment] > 0:
                share[episode.environment] -= 1
                played.append(episode)
        endless = [e for e in collector.running() if share[e.environment] > 0 and e.length >= max_steps]
        for episode in endless:
            played.append(episode)
            left_out += share[episode.environment] - 1
            share[episode.environment] = 0
        cut += len(endless)
    if isinstance(envs, str):
        given.close()
    if cut:
        warnings.warn(
            f"{cut} episodes were cut after max_steps={max_steps} steps, and {left_out} were not played after them; "
            "the policy may walk in circles: try deterministic=False, give the environment a time limit "
            "(gymnasium.wrappers.TimeLimit), or raise max_steps",
            EndlessEpisodeWarning,
            stacklevel=2,
        )
    names = sorted({name for episode in played for name in episode.metrics})
    return EvaluationResult(
        returns=np.array([episode.reward for episode in played]),
        lengths=np.array([episode.length for episode in played]),
        metrics={name: np.array([episode.metrics.get(name, np.nan) for episode in played]) for name in names},
    )


def record(
    policy: LSTMPolicyBundle,
    env: gym.Env,
    directory: str | os.PathLike[str],
    *,
    episodes: int = 1,
    seed: int = 0,
    deterministic: bool = True,
) -> EvaluationResult:
    """Play whole episodes on one environment and write a video of each, ``rl-video-episode-0.mp4`` and so on.

    Args:
        policy: The policy.
        env: Made with ``render_mode="rgb_array"``; it is closed at the end.
        directory: Where to; made if it is not there.
        episodes: How many.
        seed: Of the environment and of sampling.
        deterministic: Take the most probable choice of every head instead of drawing one.

    Raises:
        ValueError: When the environment does not draw, or does not fit the policy.
        gymnasium.error.DependencyNotInstalled: When there is no MoviePy to write with, or nothing to draw with.
    """
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"video: expected an environment made with render_mode='rgb_array', got {env.render_mode!r}; it can do "
            f"{env.metadata.get('render_modes', [])}"
        )
    with closing(RecordVideo(env, str(directory), episode_trigger=lambda episode: episode < episodes)) as recorded:
        return evaluate(policy, recorded, episodes=episodes, seed=seed, deterministic=deterministic, num_envs=1)


def load_bundle(
    run_dir: str | os.PathLike[str], encoders: Mapping[str, nn.Module] | None = None, *, best: bool = False
) -> LSTMPolicyBundle:
    """The policy in the last checkpoint of a run directory, or the best one.

    Args:
        run_dir: The run directory.
        encoders: The modules of your own that it was trained with, if any, by part; their weights are read.
        best: The policy of the best evaluation (:attr:`TrainConfig.eval_every`) instead of the last one.

    Raises:
        ValueError: When there is no run, or its checkpoint is damaged.
    """
    config = read_config(run_dir)
    checkpoint = find_checkpoint(Path(run_dir) / ("best" if best else "checkpoint"))
    normalizer = RunningMeanStd((config.network.state_dim,)) if config.normalizes_observations else None
    return LSTMPolicyBundle.load(
        checkpoint, observation_normalizer=normalizer, encoders=encoders, interface=SpacesInterface.from_json
    )
