"""``esper ppo``: train a policy on any registered environment, from the command line."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import gymnasium.error
import tyro
from rich.console import Console

from esper.commands.resuming import resumable
from esper.simic.evaluation import evaluate, load_bundle
from esper.simic.locksmith import register_environments
from esper.simic.training.config import TrainConfig
from esper.simic.training.progress import Progress
from esper.simic.training.vectorized import train
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


@dataclass(frozen=True)
class PPOCommand:
    """Train a recurrent policy with PPO on any Gymnasium environment."""

    env: str
    """Id of the environment; ``module:Id-v0`` imports a module first, also one in the working directory."""
    run_dir: Path | None = None
    """Where to write config, metrics, TensorBoard events and checkpoints."""
    resume: bool = False
    """Go on with the run in ``run_dir``."""
    evaluate_only: bool = False
    """Do not train; play with the policy in ``run_dir``."""
    episodes: int = 100
    """Episodes to play afterwards; 0 for none."""
    sample: bool = False
    """Draw actions in those episodes, instead of taking the most probable ones."""
    quiet: bool = False
    """One line per update instead of a live table."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The training run."""

    def run(self, console: Console) -> None:
        """Train, then play; progress and result go to ``console``.

        Raises:
            ValueError: For an environment or options that are not supported.
            KeyboardInterrupt: After Ctrl-C; how to go on has been said.
        """
        register_environments()
        if "" not in sys.path:
            sys.path.append("")
        try:
            policy = self._read_policy() if self.evaluate_only else self._train(console)
            if self.episodes:
                self._play(policy, console)
        except gymnasium.error.Error as error:
            raise ValueError(f"environment '{self.env}': {error}") from error

    def _read_policy(self) -> LSTMPolicyBundle:
        if self.run_dir is None:
            raise ValueError("--evaluate-only needs the --run-dir of a trained policy")
        return load_bundle(self.run_dir)

    def _train(self, console: Console) -> LSTMPolicyBundle:
        progress = Progress(quiet=self.quiet, console=console)
        go_on = f"the same options, --run-dir {self.run_dir} --resume"
        with nullcontext() if self.run_dir is None else resumable(console, go_on):
            return train(
                self.env, config=self.train, run_dir=self.run_dir, callback=progress, resume=self.resume
            ).policy

    def _play(self, policy: LSTMPolicyBundle, console: Console) -> None:
        result = evaluate(
            policy,
            self.env,
            episodes=self.episodes,
            seed=self.train.seed + 1,
            deterministic=not self.sample,
            num_envs=self.train.num_envs,
        )
        console.print(f"return {result.mean_return:.4g} ± {result.standard_error:.2g} over {self.episodes} episodes")
