"""``esper ppo``: train a policy on any registered environment, from the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from gymnasium.error import Error as GymnasiumError
from rich.console import Console

from esper.simic.environments import register_environments
from esper.simic.evaluation import evaluate, load_policy
from esper.simic.training.config import TrainConfig
from esper.simic.training.progress import Progress
from esper.simic.training.vectorized import train


@dataclass(frozen=True)
class PPOCommand:
    """Train a recurrent policy with PPO on any Gymnasium environment with discrete actions."""

    env: str
    """Id of the environment; ``module:Id-v0`` imports a module first."""
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
    """One line an update instead of a live table."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The training run."""


def main(command: PPOCommand) -> int:
    """Run the command; its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    register_environments()
    console = Console()
    try:
        return _run(command, console)
    except (ValueError, GymnasiumError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if command.run_dir is not None:
            print(f"stopped; go on with --run-dir {command.run_dir} --resume", file=sys.stderr)
        return 130


def _run(command: PPOCommand, console: Console) -> int:
    if command.evaluate_only:
        if command.run_dir is None:
            raise ValueError("--evaluate-only needs the --run-dir of a trained policy")
        policy = load_policy(command.run_dir)
    else:
        progress = Progress(quiet=command.quiet, console=console)
        policy = train(
            command.env, config=command.train, run_dir=command.run_dir, callback=progress, resume=command.resume
        ).policy
    if command.episodes:
        result = evaluate(
            policy,
            command.env,
            episodes=command.episodes,
            seed=command.train.seed + 1,
            deterministic=not command.sample,
            num_envs=command.train.num_envs,
        )
        console.print(f"return {result.mean_return:.4g} ± {result.standard_error:.2g} over {command.episodes} episodes")
    return 0
