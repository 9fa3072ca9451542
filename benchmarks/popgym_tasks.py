"""Tasks of POPGym, with the published rows beside ours.

    pip install popgym
    python benchmarks/popgym_tasks.py --difficulty easy              # 3 seeds each
    python benchmarks/popgym_tasks.py --difficulty medium --tasks RepeatFirst CountRecall

POPGym (Morad et al. 2023, https://openreview.net/forum?id=chDrutUTs0K) trains PPO with 13 kinds of memory for 15 M
steps and reports the best mean episodic return of the training (MMER), the mean of 3 seeds. Its environments, and its
wrapper that adds the previous action to the observation, are used as they are; ours sees far fewer steps. A best of
many updates counts the luck of the few episodes that end in one, so the mean of the last tenth of the training stands
beside it.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from popgym.wrappers import Flatten, PreviousAction
from rich.console import Console
from rich.table import Table

from esper.simic import PPOConfig, TrainConfig, train

PUBLISHED_STEPS = 15_000_000


@dataclass(frozen=True)
class Task:
    """One row of the table: an environment, what is published of it, and how ours is trained."""

    module: str
    """Module of ``popgym.envs`` that holds the environment."""
    published: float
    """MMER of the GRU row, mean of 3 seeds."""
    steps: int
    """Steps we take."""
    ppo: PPOConfig


QUICK = PPOConfig(learning_rate="linear:1e-3")
SHORT_SIGHTED = PPOConfig(learning_rate="linear:1e-3", minibatches=8, gamma=0.9)

TASKS = {
    "easy": {
        "RepeatPrevious": Task("repeat_previous", 1.000, 120_000, SHORT_SIGHTED),
        "NoisyPositionOnlyCartPole": Task("noisy_position_only_cartpole", 0.995, 120_000, QUICK),
    },
    "medium": {
        "RepeatFirst": Task("repeat_first", 1.000, 600_000, SHORT_SIGHTED),
        "RepeatPrevious": Task("repeat_previous", -0.315, 600_000, SHORT_SIGHTED),
        "PositionOnlyCartPole": Task("position_only_cartpole", 1.000, 400_000, QUICK),
        "NoisyPositionOnlyCartPole": Task("noisy_position_only_cartpole", 0.642, 600_000, QUICK),
        "CountRecall": Task("count_recall", -0.528, 600_000, SHORT_SIGHTED),
        "HigherLower": Task("higher_lower", 0.511, 400_000, SHORT_SIGHTED),
    },
}


@dataclass
class Options:
    difficulty: Literal["easy", "medium"] = "easy"
    """Which rows."""
    tasks: tuple[str, ...] = ()
    """Which of them; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed and task."""
    share: float = 1.0
    """Share of the steps to take, for a quick look."""
    output: Path | None = None
    """Where to write the results as JSON, after every task."""


def environment(name: str, difficulty: str, task: Task) -> Callable[[], gym.Env]:
    """Makes the environment, with the previous action in its observation."""
    cls = getattr(importlib.import_module(f"popgym.envs.{task.module}"), name + difficulty.title())
    return lambda: Flatten(PreviousAction(cls()))


def run(make: Callable[[], gym.Env], task: Task, seed: int, steps: int) -> tuple[float, float, int, float]:
    """Best mean episodic return, that of the last tenth, the step of a return near the published one, and seconds.

    Near is within 0.01, and −1 stands for never. As in the paper, the return of an update is the mean over the episodes
    that ended in its rollout.
    """
    envs = SyncVectorEnv([make] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    began = time.perf_counter()
    config = TrainConfig(seed=seed, total_steps=steps, num_steps=128, ppo=task.ppo)
    rows = train(envs, config=config).metrics
    returns = np.array([row["return"] for row in rows])
    reached = np.flatnonzero(returns >= task.published - 0.01)
    first = int(rows[reached[0]]["env_steps"]) if len(reached) else -1
    last = float(np.nanmean(returns[-(len(returns) // 10) :]))
    return float(np.nanmax(returns)), last, first, time.perf_counter() - began


def main(options: Options) -> None:
    torch.set_num_threads(1)
    tasks = TASKS[options.difficulty]
    if unknown := set(options.tasks) - set(tasks):
        raise SystemExit(f"--tasks: {', '.join(sorted(unknown))} is not among {', '.join(tasks)}")
    console = Console(width=160)
    records = []
    for name in options.tasks or tasks:
        task = tasks[name]
        steps = int(task.steps * options.share)
        make = environment(name, options.difficulty, task)
        best, last, reached, seconds = [], [], [], []
        for seed in options.seeds:
            result = run(make, task, seed, steps)
            for column, value in zip((best, last, reached, seconds), result, strict=True):
                column.append(value)
            what = f"{name} {options.difficulty}, seed {seed}"
            console.print(f"{what}: {result[0]:.3f}, at the end {result[1]:.3f}, {result[3]:.0f} s")
        records.append(
            {"task": name, "difficulty": options.difficulty, "published": task.published, "steps": steps}
            | {"published_steps": PUBLISHED_STEPS, "seeds": options.seeds, "mmer": best, "last_tenth": last}
            | {"reached_at": reached, "seconds": seconds}
        )
        if options.output is not None:
            options.output.write_text(json.dumps(records, indent=2) + "\n")
    table = Table(
        "task",
        "published (GRU)",
        "its steps",
        "ours",
        "last tenth",
        "our steps",
        "published − 0.01 reached at",
        "s a run",
    )
    for record in records:
        ours, last = (
            f"{np.mean(x):.3f} ({', '.join(f'{b:.3f}' for b in x)})" for x in (record["mmer"], record["last_tenth"])
        )
        table.add_row(
            f"{record['task']} {record['difficulty']}",
            f"{record['published']:.3f}",
            f"{PUBLISHED_STEPS:,}",
            ours,
            last,
            f"{record['steps']:,}",
            ", ".join("never" if r < 0 else f"{r:,}" for r in record["reached_at"]),
            f"{np.mean(record['seconds']):.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
