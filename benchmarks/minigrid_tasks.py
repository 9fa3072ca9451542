"""Two tasks of MiniGrid from the raw grid that the agent sees, with and without memory.

    pip install minigrid
    python benchmarks/minigrid_tasks.py                 # 3 seeds each

MiniGrid (Chevalier-Boisvert et al. 2023, https://arxiv.org/abs/2306.13831) shows the 7 by 7 cells in front of the agent
as numbers of object, colour and state, which are read as a picture of bytes. In DoorKey a key opens the door to the
goal; in Memory an object is shown at the start, and at the end of a corridor the way to the same object is to be taken:
who does not remember takes the wrong one half of the times. A success after t of T steps gives 1 − 0.9·t/T, all else 0.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.wrappers import ImgObsWrapper
from rich.console import Console
from rich.table import Table

from esper.simic import NetworkOptions, PPOConfig, TrainConfig, evaluate, train

NUM_ENVS, NUM_STEPS = 16, 128


@dataclass(frozen=True)
class Task:
    name: str
    steps: int
    """Steps we take."""
    ppo: PPOConfig
    published: str
    """Of others, where we know of any."""


TASKS = (
    Task(
        "MiniGrid-DoorKey-5x5-v0",
        steps=100_000,
        ppo=PPOConfig(learning_rate="linear:1e-3", minibatches=8, entropy_coefficient=0.01),
        published="0.97, PPO of RL Zoo after 100,000 steps",
    ),
    Task(
        "MiniGrid-MemoryS7-v0",
        steps=200_000,
        ppo=PPOConfig(learning_rate="linear:1e-3", minibatches=8, entropy_coefficient=0.01),
        published="",
    ),
)


@dataclass
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed, task and memory."""
    tasks: tuple[str, ...] = tuple(task.name for task in TASKS)
    """Whose rows to fill."""
    memory: tuple[str, ...] = ("lstm", "none")
    """With which memories."""
    share: float = 1.0
    """Share of the steps to take, for a quick look."""
    output: Path | None = None
    """Where to write the results as JSON."""


def play(task: Task, memory: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, then play 400 episodes, actions drawn: their mean return, and the returns of the training."""
    envs = SyncVectorEnv(
        [lambda: ImgObsWrapper(gym.make(task.name))] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP
    )
    network = NetworkOptions(memory=memory)  # type: ignore[arg-type]
    config = TrainConfig(seed=seed, total_steps=steps, num_steps=NUM_STEPS, ppo=task.ppo, network=network)
    began = time.perf_counter()
    result = train(envs, config=config)
    seconds = time.perf_counter() - began
    row = {"task": task.name, "memory": memory, "seed": seed, "steps": steps, "seconds": seconds}
    played = evaluate(result.policy, envs, episodes=400, deterministic=False)
    training = [[int(r["env_steps"]), round(float(r["return"]), 3)] for r in result.metrics[4::5]]
    return row | {"return": played.mean_return, "training": training}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    table = Table("task", "memory", "steps", "mean return of 400 episodes, by seed", "seconds a run", "others")
    records: list[dict[str, Any]] = []
    for task in (task for task in TASKS if task.name in options.tasks):
        steps = int(task.steps * options.share)
        for memory in options.memory:
            found = [play(task, memory, seed, steps) for seed in options.seeds]
            records += found
            if options.output is not None:
                options.output.write_text(json.dumps(records, indent=2) + "\n")
            returns = [row["return"] for row in found]
            each = f"{np.mean(returns):.3f} ({', '.join(f'{r:.3f}' for r in returns)})"
            seconds = f"{np.mean([row['seconds'] for row in found]):.0f}"
            table.add_row(task.name, memory, f"{steps:,}", each, seconds, task.published)
    Console(width=160).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
