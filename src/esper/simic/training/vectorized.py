"""The training loop, over any Gymnasium vector environments.

Legend: T steps of a rollout, K environments of one vector environment.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from esper.heads import HeadTable
from esper.simic import ppo
from esper.simic.control.normalization import RunningMeanStd
from esper.simic.environments import Environments, named, vectorized
from esper.simic.evaluation import evaluate
from esper.simic.rollout_buffer import RolloutBuffer
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.ahead import Ahead
from esper.simic.training.callbacks import Callback, Plan, StopTraining
from esper.simic.training.collector import Collector, Episode
from esper.simic.training.config import TrainConfig
from esper.simic.training.interrupts import InterruptGuard
from esper.simic.training.phases import Phases
from esper.simic.training.reward_scaling import RewardScaler
from esper.simic.training.run_directory import RunDirectory
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.networks.standardizer import StateStandardizer
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tracking import check_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves."""

    policy: LSTMPolicyBundle
    """The trained policy."""
    metrics: list[dict[str, float]] = field(repr=False)
    """One row per update, of this call; see :func:`esper.simic.ppo.update` and :meth:`Trainer.update`."""
    env_steps: int
    """Environment steps taken in all."""
    run_dir: Path | None
    """Where the run was written, if anywhere."""


def train(
    envs: Environments,
    *,
    config: TrainConfig | None = None,
    policy: LSTMPolicyBundle | None = None,
    heads: HeadTable | None = None,
    encoders: Mapping[str, nn.Module] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
    eval_envs: Environments | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a policy with PPO.

    Args:
        envs: An environment id; an environment; a vector environment; or several of these, which are collected from one
            after the other and learned from together. They must have the same heads, and features that differ at most
            in the slots.
        config: The options.
        policy: Goes on learning in place; ``None`` makes a new one of the sizes in ``config.network``.
        heads: The heads of the action, in the order they are drawn; ``None``: see
            :func:`esper.simic.spaces.declared_heads`.
        encoders: Modules of your own for parts of the observation, by the part's path (``"camera"``; ``"observation"``
            for an observation without parts): from ``[N, *shape]`` as the environment shows it to ``[N, E]``. They are
            trained with the policy.
        run_dir: Where to write config, metrics, TensorBoard events and checkpoints; ``None`` writes nothing.
        callback: Watches the run, for instance :class:`esper.simic.training.progress.Progress`, and may end it.
        eval_envs: What evaluations are played on, where ``config.eval_every`` asks for them; ``None``: copies of their
            own of the environment, when it is given by its id.
        resume: Go on from the checkpoint in ``run_dir``. Environments that have ``state_dict`` and ``load_state_dict``
            go on where they were, so the run is the same as one that was never interrupted; others are reset. Rates,
            coefficients, lengths and the number of environments may be others than before.

    Raises:
        ValueError: For environments or options that are not supported, see the message.
        TypeError: For what is no environment.
        KeyboardInterrupt: After Ctrl-C. The rollout at hand is discarded, and ``run_dir`` holds a checkpoint of the
            last update.

    Example:
        >>> result = train("CartPole-v1", config=TrainConfig(updates=2, num_envs=2, num_steps=16))
        >>> result.metrics[-1]["update"]
        2.0
    """
    config = config or TrainConfig()
    if resume and run_dir is None:
        raise ValueError("resume=True needs the run_dir to resume from")
    check_trackers(config.track)
    if config.track and run_dir is None:
        raise ValueError("track: what is tracked is a run in a directory; give its run_dir")
    given = vectorized(envs, config.num_envs)
    watched = _eval_envs(config, envs if eval_envs is None and isinstance(envs, str) else eval_envs)
    trainer = Trainer(
        given, config, policy=policy, heads=heads, encoders=encoders, callback=callback, eval_envs=watched
    )
    directory = None if run_dir is None else RunDirectory(run_dir)
    metrics: list[dict[str, float]] = []
    try:
        trainer.start(directory, environment=", ".join(map(named, given)), resume=resume)
        _learn(trainer, directory, metrics)
    except StopTraining:
        pass
    finally:
        trainer.abandon()
        trainer.callback.on_end()
        if directory is not None:
            directory.close()
        if isinstance(envs, str):
            given[0].close()
        if watched is not None and (eval_envs is None or isinstance(eval_envs, str)):
            watched.close()
    return TrainResult(trainer.policy, metrics, trainer.env_steps, None if directory is None else directory.path)


def _eval_envs(config: TrainConfig, envs: Environments | None) -> VectorEnv | None:
    """The vector environment that evaluations are played on, if there are any."""
    if config.eval_every is None:
        return None
    if envs is None:
        raise ValueError("eval_every: give the eval_envs to evaluate on, or an environment by its id")
    found, *others = vectorized(envs, min(config.num_envs, config.eval_episodes))
    if others:
        raise ValueError(f"eval_envs: expected one vector environment, got {1 + len(others)}")
    return found


def _learn(trainer: Trainer, directory: RunDirectory | None, history: list[dict[str, float]]) -> None:
    """Collect, update, repeat; whatever ends it between two updates, the last one is kept."""
    with InterruptGuard() as interrupt:
        while trainer.row is not None or not trainer.is_done():
            if trainer.row is None:
                trainer.update(_collect(trainer, directory, interrupt))
            stopped = True
            try:
                metrics = trainer.evaluate()
                history.append(metrics)
                if directory is not None:
                    directory.log(metrics)
                trainer.callback.on_update(metrics)
                stopped = False
            finally:
                if directory is not None and (stopped or trainer.checkpoint_is_due()):
                    directory.save(trainer.policy, trainer.state_dict())


def _collect(trainer: Trainer, directory: RunDirectory | None, interrupt: InterruptGuard) -> Collected:
    """One rollout from every vector environment."""
    boundary = None if directory is None else trainer.state_dict()
    try:
        return trainer.collect(lambda: interrupt.requested)
    except BaseException as error:
        if directory is not None and boundary is not None:
            directory.save(trainer.policy, boundary)
        # Ctrl-C also reaches the worker processes of an environment, whose next step may fail for it.
        if interrupt.requested and isinstance(error, Exception):
            raise KeyboardInterrupt(f"stopped after update {trainer.updates}") from error
        raise


@dataclass(frozen=True)
class Actor:
    """All that collecting reads of what learning changes."""

    policy: LSTMPolicyBundle
    reward_scale: float
    """What rewards are multiplied with."""

    def to_plain(self) -> dict[str, Any]:
        """Weights, statistics and scale."""
        normalizer = self.policy.observation_normalizer
        return {
            "network": dict(self.policy.network.state_dict()),
            "normalizer": None if normalizer is None else dict(normalizer.state_dict()),
            "reward_scale": self.reward_scale,
        }

    @classmethod
    def from_plain(cls, policy: LSTMPolicyBundle, plain: Mapping[str, Any]) -> Actor:
        """What gave ``plain``; ``policy`` takes it over."""
        policy.network.load_state_dict(plain["network"])
        if policy.observation_normalizer is not None:
            policy.observation_normalizer.load_state_dict(plain["normalizer"])
        return cls(policy, plain["reward_scale"])


@dataclass
class Collected:
    """One rollout from every vector environment."""

    rollouts: list[RolloutBuffer]
    in_hindsight: list[RolloutBuffer]
    """The same under other objectives, of the environments that offer one."""
    episodes: list[Episode]
    """Those that have ended."""
    reward_scale: float
    """What rewards were multiplied with."""
    phases: Phases
    """What took how long."""
    staleness: int
    """Updates that the policy is ahead of the one that acted."""
    waiting: float = math.nan
    """Seconds until it was there, and the next one under way."""

    @property
    def steps(self) -> int:
        """Steps that belong to an episode."""
        return sum(int(rollout["valid"].sum()) for rollout in self.rollouts)


class Trainer:
    """A run in progress: the policy, its environments, and everything that decides what happens next.

    Args:
        envs: One or more vector environments.
        config: The options.
        policy: Learns in place; ``None`` makes one.
        heads: The heads of the action.
        encoders: Modules of the user's own, for a new policy.
        callback: Watches the run.
        eval_envs: What evaluations are played on.
    """

    def __init__(
        self,
        envs: Sequence[VectorEnv],
        config: TrainConfig,
        *,
        policy: LSTMPolicyBundle | None = None,
        heads: HeadTable | None = None,
        encoders: Mapping[str, nn.Module] | None = None,
        callback: Callback | None = None,
        eval_envs: VectorEnv | None = None,
    ) -> None:
        if not envs:
            raise ValueError("expected at least one vector environment, got none")
        self.config = config
        self.callback = callback or Callback()
        self.eval_envs = eval_envs
        device = config.find_device()
        if policy is not None and heads is None:
            heads = policy.heads
        encoders = encoders or {} if policy is None else policy.network.part_encoder.own
        adapters = [EnvironmentAdapter(each, heads, device, encoders) for each in envs]
        self.policy = policy or make_bundle(adapters[0], config, encoders)
        self.policy.network.to(device)
        watched = [] if eval_envs is None else [EnvironmentAdapter(eval_envs, heads, device, encoders)]
        self._check_alike([*adapters, *watched])
        self.collectors = [
            Collector(e, a, config.num_steps, noise_correlation=config.noise_correlation)
            for e, a in zip(envs, adapters, strict=True)
        ]
        self.optimizer = ppo.make_optimizer(self.policy, config.ppo)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.acting_generator = self.generator
        if config.overlap:  # what acts and what learns would take turns as the clock has it
            self.acting_generator = torch.Generator(device).manual_seed(self._seed(2))
        self._actor: Actor | None = None
        """Acts in the next rollout, if it is not the policy as it is."""
        self._ahead: Ahead[Collected] | None = None
        """The next rollout, if it is under way."""
        self._beginning: dict[str, Any] = {}
        """Where that one began, see :meth:`_begins`."""
        num_envs = [each.num_envs for each in envs]
        self.reward_scaler = RewardScaler(num_envs, config.ppo.gamma, device) if config.normalize_rewards else None
        self.planned_updates = config.planned_updates(sum(num_envs))
        self.updates = 0
        self.env_steps = 0
        self.row: dict[str, float] | None = None
        """What is known of the last update, until :meth:`evaluate` has made it whole."""
        self.best: dict[str, float] | None = None
        """``update`` and ``return`` of the best evaluation."""
        self._rows = 0

    def _check_alike(self, adapters: Sequence[EnvironmentAdapter]) -> None:
        config = self.policy.network.config
        for i, adapter in enumerate(adapters):
            if adapter.heads != self.policy.heads:
                raise ValueError(
                    f"environment {i} has the heads {adapter.heads.names} and the policy {self.policy.heads.names}; "
                    "they must be the same table"
                )
            expected = config.run_size + config.slot_size * adapter.num_slots
            if adapter.state_dim != expected:
                raise ValueError(
                    f"environment {i} gives {adapter.state_dim} features with {adapter.num_slots} slots, but the "
                    f"policy reads {expected}"
                )
            if adapter.parts != config.parts:
                raise ValueError(
                    f"environment {i} shows the parts {adapter.parts}, but the policy reads {config.parts}; they must "
                    "be the same"
                )
        sizes = sorted({adapter.state_dim for adapter in adapters} | {config.state_dim})
        if len(sizes) > 1 and self.policy.observation_normalizer is not None:
            raise ValueError(
                f"environments with different numbers of slots give {sizes} features, which no single statistic can "
                "normalise; give a policy without observation_normalizer: with slots its network does it"
            )

    # ------------------------------------------------------------------ beginning

    def start(self, directory: RunDirectory | None, *, environment: str, resume: bool) -> None:
        """Reset the environments, or go on from the checkpoint in ``directory``."""
        if resume:
            assert directory is not None
            checkpoint, state = directory.resume(self.config, environment)
            load_weights(self.policy, checkpoint)  # first: it tells a policy of other heads or sizes by name
            self.load_state_dict(state)
        else:
            for i, collector in enumerate(self.collectors):
                collector.reset(self.policy, self._env_seed(i))
            if directory is not None:
                directory.begin(self.config, self.policy, environment)
        if self.policy.network.config.num_slots == 0:  # one with slots steers growth, which has its own terms
            self.policy.interface = self.collectors[0].interface(tuple(self.policy.network.part_encoder.own))
        steps = self.config.num_steps * len(self.collectors)
        self.callback.on_start(Plan(self.planned_updates, self.updates, steps, self.policy))
        if resume:
            assert directory is not None
            directory.keep_best(self.policy, state)  # what a process that died may not have come to
            return
        self._warm_up()
        if directory is not None:
            directory.save(self.policy, self.state_dict())

    def _env_seed(self, collector: int) -> int:
        """A seed for one vector environment, another one for every update it may be reset after."""
        return int(np.random.SeedSequence([self.config.seed, collector, self.updates]).generate_state(1)[0] % 2**31)

    def _warm_up(self) -> None:
        """Where something is normalised, let a first rollout only fill the statistics.

        They are fixed while a rollout is collected and learned from, so that both see the same numbers; without this
        the first update would see raw ones.
        """
        if self.reward_scaler is not None or self._observation_statistics() is not None:
            collected = self._rollout(self._present(), lambda: False)
            self.env_steps += collected.steps
            self._observe(collected.rollouts)

    # ------------------------------------------------------------------ the loop

    def collect(self, should_stop: Callable[[], bool] = lambda: False) -> Collected:
        """One rollout from every vector environment.

        With ``config.overlap`` the next one begins at once, on a thread of its own, unless this is the last; there acts
        a copy of the policy as it is now, its statistics included, and rewards are scaled as they are now.
        """
        began = time.perf_counter()
        if self._ahead is None:
            collected = self._rollout(self._actor or self._present(), should_stop)
        else:
            collected = self._ahead.result()
        self._actor = self._ahead = None
        if self.config.overlap and self.updates + 1 < self.planned_updates:
            self._actor = replace(self._present(), policy=self._copy())
            self._beginning = self._begins()
            self._ahead = Ahead(partial(self._rollout, self._actor), should_stop)
        self.env_steps += collected.steps
        collected.waiting = time.perf_counter() - began
        return collected

    def _rollout(self, actor: Actor, should_stop: Callable[[], bool]) -> Collected:
        """A rollout of ``actor``."""
        # The processor's time of two things at once can only be told apart by their threads.
        phases = Phases(time.thread_time if self.config.overlap else time.process_time)
        rollouts = [
            collector.collect(
                actor.policy,
                self.acting_generator,
                gamma=self.config.ppo.gamma,
                gae_lambda=self.config.ppo.gae_lambda,
                reward_scale=actor.reward_scale,
                paired=self.config.paired,
                phases=phases,
                on_step=self.callback.on_step,
                should_stop=should_stop,
            )
            for collector in self.collectors
        ]
        in_hindsight = [c.hindsight.buffer for c in self.collectors if c.hindsight is not None]
        episodes = [episode for collector in self.collectors for episode in collector.episodes]
        staleness = int(actor.policy is not self.policy)
        return Collected(rollouts, in_hindsight, episodes, actor.reward_scale, phases, staleness)

    def _present(self) -> Actor:
        return Actor(self.policy, 1.0 if self.reward_scaler is None else self.reward_scaler.scale)

    def _copy(self) -> LSTMPolicyBundle:
        """The policy as it is now."""
        actor = copy.deepcopy(self.policy)
        actor.network.to(self.config.find_device())  # lays the weights of an LSTM side by side again
        return actor

    def abandon(self) -> None:
        """Leave the rollout that is under way, if there is one; :meth:`state_dict` still knows where it began."""
        if self._ahead is not None:
            self._ahead.abandon()

    def update(self, collected: Collected) -> None:
        """Learn from the latest rollouts, and from the same in hindsight; :attr:`row` has what is known of it.

        Besides those of :func:`esper.simic.ppo.update`: ``update``, ``env_steps`` (in all), ``episodes`` (ended during
        the rollout), their mean ``return`` and ``length``, ``episode/{name}`` (means of what the environment reported),
        ``reward_scale``, ``steps_per_second``, and what :meth:`Phases.metrics` tells of the time. With
        ``config.overlap`` also ``staleness`` (updates that the policy was ahead of the one that acted) and
        ``seconds/waiting`` (for the rollout, in which there was nothing to learn).
        """
        phases = collected.phases
        phases.begin()
        learned = ppo.update(
            self.policy,
            self.optimizer,
            [*collected.rollouts, *collected.in_hindsight],
            self.config.ppo,
            self.generator,
            remaining=1.0 - self.updates / self.planned_updates,
        )
        self._observe(collected.rollouts)
        self.updates += 1
        self._rows += self.config.num_steps * sum(collector.envs.num_envs for collector in self.collectors)
        phases.end("update")
        overlap, seconds = {}, sum(phases.seconds.values())
        if self.config.overlap:
            overlap = {"staleness": float(collected.staleness), "seconds/waiting": collected.waiting}
            seconds = collected.waiting + phases.seconds["update"]
        self.row = {
            "update": float(self.updates),
            "env_steps": float(self.env_steps),
            **_episode_metrics(collected.episodes),
            **learned,
            "reward_scale": collected.reward_scale,
            "steps_per_second": collected.steps / seconds,
            **phases.metrics(),
            **overlap,
        }

    def evaluate(self) -> dict[str, float]:
        """Play the episodes of an evaluation, where one is due; the whole row of metrics of the last update.

        Besides those of :meth:`update`, where there was an evaluation: ``eval/return`` and ``eval/length`` (means over
        its episodes), ``eval/standard_error`` of the return, ``eval/{name}`` (means of what the environment reported),
        and ``eval/best_return`` of all evaluations.
        """
        assert self.row is not None, "update() comes first"
        row, every = self.row, self.config.eval_every
        if every is not None and (self.updates % every == 0 or self.updates == self.planned_updates):
            row = row | self._evaluation()
        self.row = None
        return row

    def _evaluation(self) -> dict[str, float]:
        assert self.eval_envs is not None, "eval_every comes with eval_envs"
        result = evaluate(self.policy, self.eval_envs, episodes=self.config.eval_episodes, seed=self._seed(1))
        if self.best is None or result.mean_return > self.best["return"]:
            self.best = {"update": self.updates, "return": result.mean_return}
        return {
            **{f"eval/{name}": _mean(values[~np.isnan(values)].tolist()) for name, values in result.metrics.items()},
            "eval/return": result.mean_return,
            "eval/standard_error": result.standard_error,
            "eval/length": float(result.lengths.mean()),
            "eval/best_return": self.best["return"],
        }

    def _seed(self, stream: int) -> int:
        """A seed for a stream of random numbers of its own."""
        return int(np.random.SeedSequence(self.config.seed, spawn_key=(stream,)).generate_state(1)[0] % 2**31)

    def _observation_statistics(self) -> RunningMeanStd | StateStandardizer | None:
        """What learns the scale of observations: with slots the network itself, else the policy's normaliser."""
        if not self.config.normalize_observations:
            return None
        normalizer = self.policy.observation_normalizer
        return normalizer if isinstance(normalizer, RunningMeanStd) else self.policy.network.standardizer

    def _observe(self, rollouts: Sequence[RolloutBuffer]) -> None:
        """Bring the statistics up to date, between two rollouts."""
        statistics = self._observation_statistics()
        if statistics is not None:
            for rollout in rollouts:
                statistics.update(rollout["features"][rollout["valid"]])
        if self.reward_scaler is not None:
            self.reward_scaler.observe(rollouts)

    # ------------------------------------------------------------------ state

    def is_done(self) -> bool:
        """Whether all updates are done, or an evaluation has reached the return to stop at."""
        goal = self.config.stop_at_return
        is_good_enough = goal is not None and self.best is not None and self.best["return"] >= goal
        return is_good_enough or self.updates >= self.planned_updates

    def checkpoint_is_due(self) -> bool:
        """Whether the last update is one to be kept."""
        is_best = self.best is not None and self.best["update"] == self.updates
        return is_best or self.updates % self.config.checkpoint_every == 0 or self.is_done()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy's weights, which only :meth:`update` changes."""
        return {
            "update": self.updates,
            "env_steps": self.env_steps,
            "rows": self._rows,
            "row": self.row,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "reward_scaler": None if self.reward_scaler is None else self.reward_scaler.state_dict(),
            **(self._begins() if self._ahead is None else self._beginning),
        }

    def _begins(self) -> dict[str, Any]:
        """What the next rollout follows from: where the environments are, and with ``config.overlap`` what acts."""
        begins: dict[str, Any] = {"collectors": [collector.state_dict() for collector in self.collectors]}
        if self.config.overlap:
            begins["acting_generator"] = self.acting_generator.get_state()
            begins["actor"] = None if self._actor is None else self._actor.to_plain()
        return begins

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; environments that cannot take theirs are reset, and it is said."""
        self.updates, self.env_steps, self._rows = state["update"], state["env_steps"], state["rows"]
        self.row, self.best = state["row"], state["best"]
        num_envs = sum(collector.envs.num_envs for collector in self.collectors)
        self.planned_updates = self.config.planned_updates(num_envs, self.updates, self._rows)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        if self.reward_scaler is not None:
            self.reward_scaler.load_state_dict(state["reward_scaler"])
        if self.config.overlap:
            self.acting_generator.set_state(state["acting_generator"])
            if state["actor"] is not None:
                self._actor = Actor.from_plain(self._copy(), state["actor"])
        for i, (collector, before) in enumerate(zip(self.collectors, state["collectors"], strict=True)):
            if collector.resumable and collector.fits(before):
                collector.load_state_dict(before)
                continue
            why = "another number of environments" if collector.resumable else "no state_dict() and load_state_dict()"
            logger.warning(
                "%s has %s: its episodes begin anew, so the resumed run differs from one that was never interrupted",
                collector.envs,
                why,
            )
            collector.reset(self.policy, self._env_seed(i))


def make_bundle(
    adapter: EnvironmentAdapter, config: TrainConfig, encoders: Mapping[str, nn.Module] | None = None
) -> LSTMPolicyBundle:
    """A new policy for the environments behind ``adapter``; the seed decides its weights, but not the ``encoders``'."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = FactoredRecurrentActorCritic(
            heads=adapter.heads,
            state_dim=adapter.state_dim,
            num_slots=adapter.num_slots,
            parts=adapter.parts,
            described_head=adapter.described_head if config.network.prospects else None,
            prospect_size=adapter.prospect_size if config.network.prospects else 0,
            encoders=encoders,
            standardize=config.normalize_observations,
            **vars(config.network),
        )
    # With slots the network does it, and parts have encoders that do.
    own = config.normalize_observations and adapter.num_slots == 0 and adapter.state_dim > 0
    if config.normalize_keys is not None and not own:
        raise ValueError(
            f"normalize_keys={config.normalize_keys} choose among the features that normalize_observations is about, "
            "and there are none: it is off, slots are normalised by the network, or all parts have encoders"
        )
    chosen = None if config.normalize_keys is None else adapter.features_of(config.normalize_keys)
    normalizer = RunningMeanStd((adapter.state_dim,), chosen=chosen).to(config.find_device()) if own else None
    return LSTMPolicyBundle(network, observation_normalizer=normalizer)


def load_weights(policy: LSTMPolicyBundle, directory: Path) -> None:
    """Give ``policy`` the weights and statistics saved in ``directory``.

    Raises:
        ValueError: When another policy was saved there.
    """
    normalizer = policy.observation_normalizer
    fresh = None if normalizer is None else RunningMeanStd((policy.network.config.state_dim,))
    own = copy.deepcopy(policy.network.part_encoder.own)
    saved = LSTMPolicyBundle.load(directory, heads=policy.heads, observation_normalizer=fresh, encoders=own)
    if saved.network.config != policy.network.config:
        raise ValueError(
            f"the policy saved in '{directory}' was built with {saved.network.config.to_json()}, "
            f"this one with {policy.network.config.to_json()}"
        )
    policy.network.load_state_dict(saved.network.state_dict())
    if normalizer is not None and fresh is not None:
        normalizer.load_state_dict(fresh.state_dict())


def _episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over the episodes, and their number."""
    reported: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.metrics.items():
            reported.setdefault(f"episode/{name}", []).append(value)
    return {
        "episodes": float(len(episodes)),
        "return": _mean([episode.reward for episode in episodes]),
        "length": _mean([episode.length for episode in episodes]),
        **{name: _mean(values) for name, values in reported.items()},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
