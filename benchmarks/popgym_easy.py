"""Two tasks of POPGym, with the published rows beside ours.

    pip install popgym
    python benchmarks/popgym_easy.py                 # 3 seeds each

POPGym (Morad et al. 2023, https://openreview.net/forum?id=chDrutUTs0K) trains PPO with 13 kinds of memory for 15 M
steps and reports the best mean episodic return of the training (MMER), the mean of 3 seeds. Its environments, and its
wrapper that adds the previous action to the observation, are used as they are; ours sees far fewer steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from popgym.envs.noisy_position_only_cartpole import NoisyPositionOnlyCartPoleEasy
from popgym.envs.repeat_previous import RepeatPreviousEasy
from popgym.wrappers import Flatten, PreviousAction
from rich.console import Console
from rich.table import Table

from esper.simic import PPOConfig, TrainConfig, train

PUBLISHED_STEPS = 15_000_000


@dataclass(frozen=True)
class Task:
    name: str
    make: Callable[[], gym.Env]
    published: float
    """MMER of the GRU row, mean of 3 seeds."""
    steps: int
    """Steps we take."""
    ppo: PPOConfig


TASKS = (
    Task(
        "RepeatPreviousEasy",
        RepeatPreviousEasy,
        published=1.000,
        steps=600_000,
        ppo=PPOConfig(learning_rate="linear:1e-3", minibatches=8, gamma=0.9),
    ),
    Task(
        "NoisyPositionOnlyCartPoleEasy",
        NoisyPositionOnlyCartPoleEasy,
        published=0.995,
        steps=600_000,
        ppo=PPOConfig(learning_rate="linear:1e-3"),
    ),
)


@dataclass
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed and task."""
    share: float = 1.0
    """Share of the steps to take, for a quick look."""
    output: Path | None = None
    """Where to write the results as JSON."""


def run(task: Task, seed: int, steps: int) -> tuple[float, int, float]:
    """Best mean episodic return, the step at which it was first within 1 % of the published one (or −1), and seconds.

    As in the paper, the return of an update is the mean over the episodes that ended in its rollout.
    """
    envs = SyncVectorEnv([lambda: Flatten(PreviousAction(task.make()))] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    began = time.perf_counter()
    rows = train(envs, config=TrainConfig(seed=seed, total_steps=steps, num_steps=128, ppo=task.ppo)).metrics
    returns = np.array([row["return"] for row in rows])
    reached = np.flatnonzero(returns >= 0.99 * task.published)
    first = int(rows[reached[0]]["env_steps"]) if len(reached) else -1
    return float(np.nanmax(returns)), first, time.perf_counter() - began


def main(options: Options) -> None:
    torch.set_num_threads(1)
    table = Table(
        "task", "published (GRU)", "its steps", "ours", "our steps", "published − 1 % reached at", "seconds a run"
    )
    records = []
    for task in TASKS:
        steps = int(task.steps * options.share)
        results = [run(task, seed, steps) for seed in options.seeds]
        best, reached, seconds = (list(column) for column in zip(*results, strict=True))
        records.append(
            {"task": task.name, "published": task.published, "published_steps": PUBLISHED_STEPS, "steps": steps}
            | {"seeds": options.seeds, "mmer": best, "reached_at": reached, "seconds": seconds}
        )
        table.add_row(
            task.name,
            f"{task.published:.3f}",
            f"{PUBLISHED_STEPS:,}",
            f"{np.mean(best):.3f} ({', '.join(f'{b:.3f}' for b in best)})",
            f"{steps:,}",
            ", ".join("never" if r < 0 else f"{r:,}" for r in reached),
            f"{np.mean(seconds):.0f}",
        )
    Console(width=160).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
