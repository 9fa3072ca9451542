"""How a Tamiyo is trained: PPO on growing networks, then the way of deciding that is best on validation episodes.

Example::

    from esper.evaluation import MEANS
    from esper.training import TamiyoConfig, compare_controllers, train_tamiyo

    trained = train_tamiyo(TamiyoConfig(task=("digits",), updates=30), run_dir="runs/mine")
    trained.policy.save("my_tamiyo")  # for Growth(..., policy="my_tamiyo")
    for row in compare_controllers(trained).rows(MEANS):
        print(row.task, row.arm, row.intervals["J"])
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from esper import simic
from esper.auditions import Auditions
from esper.env.engine.ray_workers import RayWorkers
from esper.env.episode import NO_VARIANTS, Variants
from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import RewardConfig, score_less_rent
from esper.evaluation import Table, compare, evaluation_seeds, names, validation_objectives
from esper.files import from_plain, is_unused, locked, read_json, write_json_atomic
from esper.observation import PROSPECT_SIZE
from esper.simic import Callback, NetworkOptions, PPOConfig, TrainConfig
from esper.simic.schedules import plain_fields
from esper.simic.training.checkpoint import find_checkpoint, holds_checkpoint
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, reading_prospects
from esper.tamiyo.policy.protocol import Policy
from esper.tamiyo.policy.registry import directory_of
from esper.tamiyo.policy.rules import AuditionPolicy, FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy
from esper.tasks import get_task
from esper.tracking import check_trackers

OP_SHARES = (1.0, 0.3, 0.1)
"""How a trained policy may decide in deterministic inference, the plainest first; 0.3 is that of Fujimoto et al.
(2019)."""

PPO_FOR_GROWTH = PPOConfig(
    learning_rate="linear:1e-3",
    gamma=1.0,
    gae_lambda=0.95,
    epochs=8,
    minibatches=4,
    entropy_coefficient=0.01,
    value_coefficient=5.0,  # J varies by a few tenths only, and a critic that learns slowly decides badly
    target_kl=0.08,
)
"""How a policy learns growth."""


@dataclass(frozen=True)
class TamiyoConfig:
    """How a Tamiyo is trained."""

    task: tuple[str, ...] = ("digits", "mnist1d")
    """Tasks to train on, one or several (see `esper tasks`)."""
    num_envs: int = 8
    """Networks that grow side by side, for each task."""
    updates: int = 15
    """PPO updates; one update is one episode of every network."""
    seed: int = 0
    """Decides everything: the same seed gives the same run, bit for bit, on one machine."""
    rent: float = 0.02
    """Price of a doubling of the parameters, in points of score (0.02 is two points)."""
    waste: float = 0.0
    """Price of wasted compute (pruned seeds, measured contributions), in points of score for as many FLOPs as the host
    alone takes; the comparison at the end does without."""
    compute: float = 0.0
    """Price of all training compute beyond that of the host alone, wasted or not, in the same unit; the comparison at
    the end does without."""
    objective: str = score_less_rent.__name__
    """What a run is worth: the name of an objective that is registered, or `module:name` of a function of your own. It
    takes an `esper.Outcome` (score, parameters, those of the host, rent) and sees nothing else."""
    budget: int | None = None
    """Cap on added parameters of each network; none by default."""
    auditions: int = 0
    """Decisions that an audition in an empty slot lasts; 0 for no auditions. The policy then reads what they show, and
    the file says that it lives by them."""
    track: tuple[str, ...] = ()
    """Trackers that metrics go to, beside TensorBoard: `wandb`, `mlflow`, `trackio`."""
    policy: str | None = None
    """A trained policy that goes on learning: `tamiyo` (the one that comes with Esper) or a directory; by default one
    with random weights begins."""
    variants: Variants = NO_VARIANTS
    """Ranges from which each episode draws its conditions, so that the controller generalises; off by default."""
    overlap: bool = False
    """Play the next episodes while learning from the last ones; they are decided by the policy as it was one update
    before."""
    paired: bool = False
    """All networks of a task play the same episode (conditions, initial weights, order of the data), so that their
    returns differ by the decisions alone; each learns by how much it did better than the others."""
    num_workers: int | None = None
    """Processes that train the networks; results do not depend on it. By default 2, where there are as many CPUs."""
    ray_workers: int = 0
    """Ray actors that train the networks in place of these processes, on one machine or many; results do not depend on
    it. 0 for none."""
    address: str | None = None
    """Of a running Ray cluster, `auto` or HOST:PORT; by default one is started on this machine."""
    eval_episodes: int = 12
    """Unseen episodes of each controller on each task in the comparison at the end; half as many validation episodes
    before it choose how the policy decides in deterministic inference."""
    ppo: PPOConfig = field(default_factory=lambda: PPO_FOR_GROWTH)
    """How the policy learns."""
    network: NetworkOptions = field(default_factory=lambda: NetworkOptions(probability_floor=0.002))
    """Sizes of the policy's network, where one begins with random weights."""

    @property
    def begins_with(self) -> Path | None:
        """Directory of the policy that goes on learning.

        Raises:
            ValueError: For a name that is neither that of a trained policy nor a directory.
        """
        if self.policy is None:
            return None
        directory = directory_of(self.policy)
        if directory is None:
            raise ValueError(f"policy '{self.policy}' is a rule, which cannot learn; expected 'tamiyo' or a directory")
        return directory

    def reward(self) -> RewardConfig:
        """The objective that is trained for.

        Raises:
            ValueError: For a price below 0, or an objective that is none.
        """
        return RewardConfig(rent=self.rent, waste=self.waste, compute=self.compute, objective=self.objective)

    def workers(self) -> int | RayWorkers:
        """What trains the networks: so many processes of this machine, or Ray actors."""
        if self.ray_workers:
            return RayWorkers(self.ray_workers, self.address)
        return self.num_workers or max(1, min(2, os.cpu_count() or 1))

    def check(self) -> None:
        """Raise ValueError for what makes no sense, before anything is written."""
        for name in ("num_envs", "updates", "num_workers", "eval_episodes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.ray_workers < 0:
            raise ValueError(f"ray_workers must be 0 or more, got {self.ray_workers}")
        if self.address is not None and not self.ray_workers:
            raise ValueError(f"the address '{self.address}' is of use to Ray workers only; say how many")
        self.reward()
        check_trackers(self.track)
        if self.auditions < 0:
            raise ValueError(f"auditions must last 0 decisions or more, got {self.auditions}")
        horizons = {name: get_task(name).horizon for name in self.task}
        if self.variants.horizon is None and len(set(horizons.values())) != 1:
            raise ValueError(
                f"tasks that are trained together must have the same horizon, got {horizons}; "
                "or let episodes draw it, by the variant 'horizon'"
            )

    def save(self, run_dir: Path) -> None:
        """Write ``command.json``, from which a run is resumed."""
        options = dataclasses.asdict(self, dict_factory=plain_fields)
        if self.policy is not None and not Path(self.policy).is_absolute() and (begun := self.begins_with):
            options["policy"] = str(begun.resolve())
        write_json_atomic(run_dir / "command.json", options)

    @classmethod
    def load(cls, run_dir: Path) -> TamiyoConfig:
        """What the run in ``run_dir`` was begun with.

        Raises:
            FileNotFoundError: When there is no such run.
            ValueError: For options that no run can have; the message names file and field.
        """
        file = run_dir / "command.json"
        if not file.is_file():
            raise FileNotFoundError(f"expected the directory of an `esper train` run, but {file} does not exist")
        return from_plain(cls, read_json(file), file)


class Watcher(Callback):
    """Watches how a Tamiyo is trained and evaluated; every method may be overridden, none has to be."""

    def on_evaluation(self, purpose: str, batches: int) -> None:
        """Before ``batches`` of episodes: "validation", to choose how the policy decides, or "test", to compare."""

    def on_decision(self, decision: int, horizon: int) -> None:
        """After a decision of the present batch, out of ``horizon``."""

    def on_evaluation_end(self) -> None:
        """After the last batch, or when the evaluation is stopped."""


@dataclass(frozen=True)
class TrainedTamiyo:
    """What training leaves."""

    config: TamiyoConfig
    policy: LSTMPolicyBundle
    """The trained policy, which decides as was best on validation episodes."""
    metrics: list[dict[str, float]] = field(repr=False)
    """One row per update, of this call; see :class:`esper.simic.TrainResult`."""
    objectives: dict[float, float]
    """Each of :data:`OP_SHARES` → mean J on validation episodes."""


def train_tamiyo(
    config: TamiyoConfig, *, run_dir: str | os.PathLike[str] | None = None, watcher: Watcher | None = None
) -> TrainedTamiyo:
    """Train a Tamiyo, and choose on validation episodes how it decides.

    Args:
        config: The options.
        run_dir: Where to write ``command.json`` (the options), what :func:`esper.simic.train` writes, and ``policy/``;
            ``None`` writes nothing.
        watcher: Watches the run.

    Raises:
        ValueError: For options that make no sense, a policy that cannot be read, or a ``run_dir`` that another process
            writes.
        FileExistsError: When ``run_dir`` is not empty; :func:`resume_tamiyo` goes on with a run.
        KeyboardInterrupt: After Ctrl-C; ``run_dir`` holds a checkpoint of the last update.
    """
    config.check()
    _refuse_other_sizes(config)
    directory = None if run_dir is None else Path(run_dir)
    if directory is not None and not is_unused(directory):
        raise FileExistsError(
            f"{directory} exists and is not empty; go on with the run in it (resume_tamiyo, or `esper train --resume "
            f"{directory}`), or choose another directory"
        )
    policy = None if config.begins_with is None else LSTMPolicyBundle.load(config.begins_with)
    with nullcontext() if directory is None else locked(directory):
        if directory is not None:
            config.save(directory)
        return _train(config, policy, directory, watcher or Watcher(), resume=False)


def _refuse_other_sizes(config: TamiyoConfig) -> None:
    """A policy that goes on learning has its network, and what is said about another would be ignored."""
    usual = TamiyoConfig().network
    names = [f.name for f in dataclasses.fields(usual) if getattr(config.network, f.name) != getattr(usual, f.name)]
    if config.policy is not None and names:
        said = ", ".join(f"network.{name} = {getattr(config.network, name)!r}" for name in names)
        raise ValueError(
            f"{said}: the policy '{config.policy}' keeps its network when it goes on learning; leave its options "
            "out, or begin with random weights (without a policy)"
        )


def resume_tamiyo(
    run_dir: str | os.PathLike[str],
    *,
    watcher: Watcher | None = None,
    num_workers: int | None = None,
    ray_workers: int = 0,
    address: str | None = None,
) -> TrainedTamiyo:
    """Go on with a run of :func:`train_tamiyo`, as if it had never stopped: bit for bit the same.

    Args:
        run_dir: The directory of the run; all options are read from it, but those that follow.
        watcher: Watches the run.
        num_workers: Train the networks in so many processes of this machine from now on. By default they are trained
            where they were.
        ray_workers: Train them in so many Ray actors from now on.
        address: Of the Ray cluster that has these, or as many as before.

    Raises:
        FileNotFoundError: When there is no such run.
        ValueError: For a checkpoint that is damaged, a ``run_dir`` that another process writes, or workers that make no
            sense.
        ConnectionError: When no Ray cluster answers.
        KeyboardInterrupt: As in :func:`train_tamiyo`.
    """
    directory = Path(run_dir)
    config = TamiyoConfig.load(directory)
    moves = num_workers is not None or ray_workers > 0 or address is not None
    if moves:
        if num_workers is None:
            ray_workers = ray_workers or config.ray_workers
        config = dataclasses.replace(config, num_workers=num_workers, ray_workers=ray_workers, address=address)
    config.check()
    with locked(directory):
        if moves:
            config.save(directory)
        resume = holds_checkpoint(directory / "checkpoint")
        begun_with = find_checkpoint(directory / "checkpoint") if resume else config.begins_with
        policy = None if begun_with is None else LSTMPolicyBundle.load(begun_with)
        return _train(config, policy, directory, watcher or Watcher(), resume=resume)


def compare_controllers(trained: TrainedTamiyo, *, watcher: Watcher | None = None) -> Table:
    """Tamiyo and the other controllers, on episodes of the tasks' length that were not trained on and on test data."""
    arms: dict[str, Policy] = {
        names.HOST_ALONE: WaitPolicy(),
        names.RANDOM_LEGAL: RandomPolicy(),
        names.FIXED: FixedSchedulePolicy(),
        names.HEURISTIC: HeuristicPolicy(),
        names.AUDITION: AuditionPolicy(),
        names.TAMIYO: LearnedPolicy(trained.policy),
    }
    watcher, episodes = watcher or Watcher(), trained.config.eval_episodes
    with _evaluation(trained.config, "test", episodes, len(arms), watcher) as (envs, seeds):
        return compare(envs, arms, seeds, watcher.on_decision)


def _train(
    config: TamiyoConfig, policy: LSTMPolicyBundle | None, directory: Path | None, watcher: Watcher, *, resume: bool
) -> TrainedTamiyo:
    """Train, from ``policy`` on if there is one, choose how it decides, and keep it."""
    reward = config.reward()
    envs = [_make_env(config, name, config.num_envs, reward=reward, variants=config.variants) for name in config.task]
    policy = _living_by_auditions(config, policy)
    options = TrainConfig(
        seed=config.seed,
        updates=config.updates,
        num_steps=get_task(config.task[0]).horizon,
        ppo=config.ppo,
        network=dataclasses.replace(config.network, prospects=config.network.prospects or config.auditions > 0),
        paired=config.paired,
        overlap=config.overlap,
        normalize_rewards=False,
        checkpoint_every=1,
        track=config.track,
    )
    try:
        result = simic.train(envs, config=options, policy=policy, run_dir=directory, callback=watcher, resume=resume)
    finally:
        for env in envs:
            env.close()
    result.policy.auditions = _auditions(config)
    objectives = _choose_op_share(config, result.policy, watcher)
    if directory is not None:
        result.policy.save(directory / "policy")
    return TrainedTamiyo(config, result.policy, result.metrics, objectives)


def _auditions(config: TamiyoConfig) -> Auditions | None:
    return Auditions(decisions=config.auditions) if config.auditions else None


def _living_by_auditions(config: TamiyoConfig, policy: LSTMPolicyBundle | None) -> LSTMPolicyBundle | None:
    """A trained policy that goes on learning, where there are auditions, by what they show."""
    if policy is None or not config.auditions:
        return policy
    return reading_prospects(policy, "blueprint", PROSPECT_SIZE)


def _choose_op_share(config: TamiyoConfig, policy: LSTMPolicyBundle, watcher: Watcher) -> dict[float, float]:
    """Let the policy decide by the ``op_share`` of the greatest mean J on validation episodes; each share's mean J."""
    objectives = {}
    episodes = (config.eval_episodes + 1) // 2
    with _evaluation(config, "validation", episodes, len(OP_SHARES), watcher) as (envs, seeds):
        for share in OP_SHARES:
            policy.op_share = share
            found = [
                validation_objectives(env, LearnedPolicy(policy), seeds, on_decision=watcher.on_decision)
                for env in envs
            ]
            objectives[share] = float(np.mean(found))
    policy.op_share = max(objectives, key=lambda share: objectives[share])
    return objectives


@contextmanager
def _evaluation(
    config: TamiyoConfig, purpose: str, episodes: int, arms: int, watcher: Watcher
) -> Iterator[tuple[list[GrowthVectorEnv], list[int]]]:
    """Environments for every task, and the seeds of their episodes."""
    conditions: dict[str, Any] = {
        "reward": RewardConfig(rent=config.rent, objective=config.objective),
        "variants": dataclasses.replace(config.variants, horizon=None),
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    envs = [_make_env(config, name, episodes, **conditions) for name in config.task]
    seeds = evaluation_seeds(episodes, seed=config.seed, purpose=purpose)
    try:
        watcher.on_evaluation(purpose, arms * len(envs))
        yield envs, seeds
    finally:
        watcher.on_evaluation_end()
        for env in envs:
            env.close()


def _make_env(config: TamiyoConfig, task: str, num_envs: int, **conditions: Any) -> GrowthVectorEnv:
    return GrowthVectorEnv(
        num_envs,
        task,
        budget=config.budget,
        num_workers=config.workers(),
        paired=config.paired,
        auditions=_auditions(config),
        **conditions,
    )
