"""Collecting the next rollout while learning from the last: what it saves in time, and what its older data cost.

    python benchmarks/overlap.py here
    python benchmarks/overlap.py growth --updates 5

Trains with and without ``overlap``, in turns, with the same seeds and numbers of steps. CartPole shows no velocities:
``here`` 16 of them are stepped in this process, with ``async`` each in one of its own, and ``elsewhere`` is here, but
each step waits for five milliseconds, as for a simulator on another machine. ``growth`` is four networks of the task
``digits``, that grow in this process, or in ``--workers`` of their own. Seconds are those of all updates but the first,
on the clock: until a rollout was there, and to learn from it. What a policy earns is the mean return over 32 episodes
of its likeliest choices; with ``growth``, which has too few updates here to learn much, that of the last rollout.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from esper.allocator import keep_freed_memory
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import bootstrap, paired_difference
from esper.files import write_json_atomic
from esper.simic import PPOConfig, TrainConfig, evaluate, train
from esper.tasks import get_task
from esper.training import PPO_FOR_GROWTH

BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Positions(VectorWrapper):
    """CartPole that shows the positions of cart and pole only, and takes some seconds more for each step, asleep."""

    def __init__(self, envs: VectorEnv, wait: float = 0.0) -> None:
        super().__init__(envs)
        self.wait, self.single_observation_space = wait, BOX
        self.observation_space = batch_space(BOX, envs.num_envs)

    def reset(self, **options: Any) -> Any:
        seen, infos = self.env.reset(**options)
        return seen[:, ::2], infos

    def step(self, actions: Any) -> Any:
        time.sleep(self.wait)
        seen, *rest = self.env.step(actions)
        return seen[:, ::2], *rest


def make(environment: str, workers: int) -> VectorEnv:
    if environment == "growth":
        return GrowthVectorEnv(4, "digits", num_workers=workers)
    if environment == "async":
        return Positions(gym.make_vec("CartPole-v1", 16, vectorization_mode="async"))
    return Positions(gym.make_vec("CartPole-v1", 16), wait=0.005 if environment == "elsewhere" else 0.0)


def config(environment: str, updates: int, seed: int, *, overlap: bool) -> TrainConfig:
    if environment == "growth":
        learning, steps = PPO_FOR_GROWTH, get_task("digits").horizon
    else:
        learning, steps = PPOConfig(learning_rate="linear:1e-3"), 128
    normalize = environment != "growth"
    return TrainConfig(
        seed=seed, updates=updates, num_steps=steps, ppo=learning, normalize_rewards=normalize, overlap=overlap
    )


def measured(options: argparse.Namespace, seed: int, *, overlap: bool) -> dict[str, float]:
    """One training."""
    envs = make(options.environment, options.workers)
    try:
        result = train(envs, config=config(options.environment, options.updates, seed, overlap=overlap))
        earned = result.metrics[-1]["return"]
        if options.environment != "growth":
            earned = evaluate(result.policy, envs, episodes=32, seed=1000 + seed).mean_return
    finally:
        envs.close()
    steps = np.diff([row["env_steps"] for row in result.metrics])
    rows = result.metrics[1:]
    speeds = [row["steps_per_second"] for row in rows]
    return {
        "seconds": float((steps / speeds).sum()),
        "learning": sum(row["seconds/update"] for row in rows),
        "gradient_steps": float(np.mean([row["gradient_steps"] for row in rows])),
        "earned": earned,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", choices=["here", "async", "elsewhere", "growth"])
    parser.add_argument("--updates", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes of `growth`")
    parser.add_argument("--out", type=Path, help="directory for overlap-ENVIRONMENT-DATE.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    runs: dict[str, list[dict[str, float]]] = {"after": [], "while": []}
    for seed in options.seeds:
        for name in ("after", "while") if seed % 2 else ("while", "after"):
            runs[name].append(measured(options, seed, overlap=name == "while"))
            print(f"seed {seed}, collects {name} learning: {runs[name][-1]}", flush=True)
    for what in runs["after"][0]:
        after, overlapped = ({"": [run[what] for run in runs[name]]} for name in ("after", "while"))
        print(f"{what}: after {bootstrap(after)}, while {bootstrap(overlapped)}")
        print(f"  difference {paired_difference(overlapped, after)}")
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(runs["after"], runs["while"], strict=True)]
    print(f"seconds while / after: {bootstrap({'': ratios})}, load {os.getloadavg()[1]:.1f}")
    if options.out is not None:
        settings = {k: v for k, v in vars(options).items() if k != "out"}
        result = {"python": platform.python_version(), "torch": torch.__version__, "settings": settings, "runs": runs}
        name = f"overlap-{options.environment}-{datetime.date.today()}.json"
        write_json_atomic(options.out / name, result | {"load": os.getloadavg()})


if __name__ == "__main__":
    main()
