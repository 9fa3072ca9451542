"""``esper train``: train Tamiyo on growing networks, then compare it honestly with the other controllers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from rich.console import Console

from esper import simic
from esper.env.episode import NO_VARIANTS, Variants
from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import RewardConfig
from esper.evaluation import names
from esper.evaluation.episode_progress import EpisodeProgress
from esper.evaluation.episodes import OnDecision, evaluation_seeds, validation_objectives
from esper.evaluation.table import Table, compare, median_growth, printed, to_json
from esper.figure import growth_figure
from esper.files import write_json_atomic
from esper.simic.ppo import PPOConfig
from esper.simic.training.checkpoint import find_checkpoint, holds_checkpoint
from esper.simic.training.config import NetworkConfig, TrainConfig
from esper.simic.training.progress import Progress
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.protocol import Policy
from esper.tamiyo.policy.rules import FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy
from esper.tasks import get_task

OP_SHARES = (1.0, 0.3, 0.1)
"""How a trained policy may decide for good, the plainest first; 0.3 is that of Fujimoto et al. (2019)."""

PPO_FOR_GROWTH = PPOConfig(
    learning_rate=1e-3,
    gamma=1.0,
    gae_lambda=0.95,
    epochs=8,
    minibatches=4,
    entropy_coefficient=0.01,
    value_coefficient=5.0,  # J varies by a few tenths only, and a critic that learns slowly decides badly
    target_kl=0.08,
)


@dataclass(frozen=True)
class TrainCommand:
    """Train Tamiyo with PPO on growing networks, and compare it with the other controllers."""

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
    """Price of training compute that nothing is left of (pruned seeds, measured contributions), in points of score for
    as many FLOPs as the host alone takes; the comparison at the end does without."""
    budget: int | None = None
    """Cap on added parameters of each network; none by default."""
    policy: Path | None = None
    """Directory of a trained policy that goes on learning; by default one with random weights begins."""
    variants: Variants = NO_VARIANTS
    """Ranges from which each episode draws its conditions, so that the controller generalises; off by default."""
    paired: bool = False
    """All networks of a task play the same episode (conditions, initial weights, order of the data), so that their
    returns differ by the decisions alone; each learns by how much it did better than the others."""
    num_workers: int = max(1, min(2, os.cpu_count() or 1))
    """Processes that train the networks; results do not depend on it."""
    eval_episodes: int = 12
    """Unseen episodes of each controller on each task in the comparison at the end; half as many validation episodes
    before it decide how the policy decides for good."""
    out: Path | None = None
    """Directory of the run [default: runs/train-DATE-TIME]."""
    resume: Path | None = None
    """Directory of a run to go on with; all other options are then read from it."""
    quiet: bool = False
    """One line an update, for logs, in place of the live display."""
    ppo: PPOConfig = field(default_factory=lambda: PPO_FOR_GROWTH)
    """How the policy learns."""
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(probability_floor=0.002))
    """Sizes of the policy's network."""

    def run(self, console: Console) -> None:
        """Train, compare, write everything into the run directory and say where."""
        run_dir = self._directory()
        command = load_command(run_dir, self) if self.resume else self
        command.check()
        policy = command.first_policy(run_dir)
        if not self.resume:
            write_json_atomic(run_dir / "command.json", command.to_json())
        policy = command.train(run_dir, policy, console)
        command.choose_op_share(policy, console)
        policy.save(run_dir / "policy")
        table = command.compare(policy, console)
        written = write_comparison(table, run_dir)
        console.print(printed(table, names.TAMIYO))
        console.print("Written:")
        for name in ("config.json", "metrics.jsonl", "checkpoint", "policy"):
            console.print(f"  {run_dir / name}", soft_wrap=True)
        for path in written:
            console.print(f"  {path}", soft_wrap=True)

    def check(self) -> None:
        """Raise ValueError for options that make no sense, before anything is written."""
        for name in ("num_envs", "updates", "num_workers", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(self, name)}")
        RewardConfig(rent=self.rent, waste=self.waste)
        horizons = {name: get_task(name).horizon for name in self.task}
        if len(set(horizons.values())) != 1:
            raise ValueError(f"tasks that are trained together must have the same horizon, got {horizons}")

    def to_json(self) -> dict[str, Any]:
        """The options that a resumed run goes on with, as plain JSON data."""
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("out", "resume", "quiet")}
        return options | {"policy": None if self.policy is None else str(self.policy.resolve())}

    # ------------------------------------------------------------------ pieces

    def _directory(self) -> Path:
        if self.resume is not None:
            if not (self.resume / "command.json").is_file():
                raise FileNotFoundError(
                    f"expected the directory of an `esper train` run, but {self.resume / 'command.json'} does not exist"
                )
            return self.resume
        run_dir = self.out or Path("runs") / datetime.now().strftime("train-%Y%m%d-%H%M%S")
        if run_dir.exists() and any(run_dir.iterdir()):
            raise FileExistsError(
                f"{run_dir} exists and is not empty; go on with it by --resume {run_dir}, or choose another --out"
            )
        return run_dir

    def make_env(self, task: str, num_envs: int, **kwargs: Any) -> GrowthVectorEnv:
        """An environment of this run for one task."""
        return GrowthVectorEnv(
            num_envs, task, budget=self.budget, num_workers=self.num_workers, paired=self.paired, **kwargs
        )

    def first_policy(self, run_dir: Path) -> LSTMPolicyBundle | None:
        """What begins or goes on: the policy of the run's own checkpoint, else the one that was given, else ``None``.

        Raises:
            ValueError: For a missing, truncated or foreign file.
        """
        if holds_checkpoint(run_dir / "checkpoint"):
            return LSTMPolicyBundle.load(find_checkpoint(run_dir / "checkpoint"))
        return None if self.policy is None else LSTMPolicyBundle.load(self.policy)

    def train(self, run_dir: Path, policy: LSTMPolicyBundle | None, console: Console) -> LSTMPolicyBundle:
        """Train Tamiyo, from ``policy`` on if there is one; the trained policy."""
        reward = RewardConfig(rent=self.rent, waste=self.waste)
        envs = [self.make_env(name, self.num_envs, reward=reward, variants=self.variants) for name in self.task]
        config = TrainConfig(
            seed=self.seed,
            updates=self.updates,
            num_steps=get_task(self.task[0]).horizon,
            ppo=self.ppo,
            network=self.network,
            paired=self.paired,
            normalize_rewards=False,
            checkpoint_every=1,
        )
        try:
            return simic.train(
                envs,
                config=config,
                policy=policy,
                run_dir=run_dir,
                callback=Progress(console=console, quiet=self.quiet),
                resume=holds_checkpoint(run_dir / "checkpoint"),
            ).policy
        finally:
            for env in envs:
                env.close()

    def choose_op_share(self, policy: LSTMPolicyBundle, console: Console) -> None:
        """Let the policy decide for good with the ``op_share`` of the greatest mean J on validation episodes."""
        found = {}
        episodes = (self.eval_episodes + 1) // 2
        arms = len(OP_SHARES)
        with self._evaluation("validation", "Choosing how it decides", episodes, arms, console) as (envs, seeds, done):
            for share in OP_SHARES:
                policy.op_share = share
                runs = [validation_objectives(env, LearnedPolicy(policy), seeds, on_decision=done) for env in envs]
                found[share] = float(np.mean(runs))
        policy.op_share = best = max(found, key=lambda share: found[share])
        told = ", ".join(f"{share:g}: {J:.3f}" for share, J in found.items())
        console.print(f"Q decides among ops from {best:g} of the likeliest's probability on (J in validation, {told})")

    def compare(self, policy: LSTMPolicyBundle, console: Console) -> Table:
        """All controllers on episodes of the tasks' length that were not trained on, and on test data."""
        arms: dict[str, Policy] = {
            names.HOST_ALONE: WaitPolicy(),
            names.RANDOM_LEGAL: RandomPolicy(),
            names.FIXED: FixedSchedulePolicy(),
            names.HEURISTIC: HeuristicPolicy(),
            names.TAMIYO: LearnedPolicy(policy),
        }
        episodes, title = self.eval_episodes, "Comparing on unseen episodes"
        with self._evaluation("test", title, episodes, len(arms), console) as (envs, seeds, done):
            return compare(envs, arms, seeds, done)

    @contextmanager
    def _evaluation(
        self, purpose: str, title: str, episodes: int, arms: int, console: Console
    ) -> Iterator[tuple[list[GrowthVectorEnv], list[int], OnDecision]]:
        """Environments for every task, the seeds of their episodes, and whom to tell of a decision."""
        conditions: dict[str, Any] = {
            "reward": RewardConfig(rent=self.rent),
            "variants": dataclasses.replace(self.variants, horizon=None),
            "autoreset_mode": AutoresetMode.NEXT_STEP,
        }
        envs = [self.make_env(name, episodes, **conditions) for name in self.task]
        seeds = evaluation_seeds(episodes, seed=self.seed, purpose=purpose)
        try:
            with EpisodeProgress(title, arms * len(envs), console=console, quiet=self.quiet) as progress:
                yield envs, seeds, progress.on_decision
        finally:
            for env in envs:
                env.close()


def load_command(run_dir: Path, given: TrainCommand) -> TrainCommand:
    """The command that began the run in ``run_dir``, with the display options of ``given``."""
    stored = json.loads((run_dir / "command.json").read_text(encoding="utf-8"))
    stored["task"] = tuple(stored["task"])
    stored["policy"] = stored["policy"] and Path(stored["policy"])
    stored["variants"] = Variants(**{k: v and tuple(v) for k, v in stored["variants"].items()})
    stored["ppo"] = PPOConfig(**stored["ppo"])
    stored["network"] = NetworkConfig(**stored["network"])
    return TrainCommand(**stored, resume=run_dir, quiet=given.quiet)


def write_comparison(table: Table, run_dir: Path) -> list[Path]:
    """Write ``comparison.json`` and one growth figure a task; what was written."""
    written = [run_dir / "comparison.json"]
    write_json_atomic(written[0], to_json(table, names.TAMIYO))
    for task in table.tasks:
        written.append(run_dir / f"growth-{task}.png")
        growth_figure(median_growth(table, task, names.TAMIYO), written[-1])
    return written
