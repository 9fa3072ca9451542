"""esper/Locksmith-v0 and esper/Archer-v0 with all abilities, and without each, beside the computed ceilings.

python benchmarks/ceilings.py --env locksmith                  # 3 seeds each
python benchmarks/ceilings.py --env archer
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FilterObservation, TransformAction
from rich.console import Console
from rich.table import Table

from esper.heads import HeadTable
from esper.simic import NetworkOptions, PPOConfig, TrainConfig, archer, evaluate, locksmith, train
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.vectorized import make_bundle

PPO = {
    "locksmith": PPOConfig(learning_rate="linear:2e-3", minibatches=8, gamma=0.5),
    "archer": PPOConfig(learning_rate="linear:2e-3", minibatches=8, gamma=0.5, entropy_coefficient=0.001),
}
"""A reward follows its action at once, so little foresight is needed; a number must end up narrow."""


@dataclass
class Options:
    env: Literal["locksmith", "archer"] = "locksmith"
    """Which of the two."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed and row."""
    steps: int = 120_000
    """Of each run."""
    rows: tuple[str, ...] | None = None
    """Of the ceilings; all by default."""
    output: Path | None = None
    """Where to write the results as JSON."""


class MiddleRange(TransformAction):
    """Archer whose shots all go to the middle of the field."""

    metadata = archer.Archer.metadata | {"heads": HeadTable(list(archer.HEADS)[:2]).to_json()}

    def __init__(self, env: gym.Env) -> None:
        chosen = spaces.Dict({name: env.action_space[name] for name in ("act", "target")})  # type: ignore[index]
        super().__init__(env, lambda action: {**action, "range": np.zeros(1, np.float32)}, chosen)


def make(name: str, missing: str) -> gym.Env:
    """The environment, or what is left of it."""
    env = locksmith.Locksmith() if name == "locksmith" else archer.Archer()
    if missing == "no mask":
        return FilterObservation(env, [key for key in env.observation_space if key != "action_mask"])
    return MiddleRange(env) if missing == "no number" else env


def play(name: str, missing: str, seed: int, steps: int) -> float:
    """Mean return of a policy trained without the ability that is ``missing``, actions drawn, 400 episodes."""
    envs = SyncVectorEnv([lambda: make(name, missing)] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    network = NetworkOptions(memory="none" if missing == "no memory" else "lstm")
    config = TrainConfig(seed=seed, total_steps=steps, ppo=PPO[name], network=network)
    policy = make_bundle(EnvironmentAdapter(envs), config)
    if missing == "independent heads":
        for head in policy.network.tree.heads:
            if head.conditioning is not None:
                head.conditioning.requires_grad_(False)
                torch.nn.init.zeros_(head.conditioning.weight)
    train(envs, config=config, policy=policy)
    return evaluate(policy, envs, episodes=400, deterministic=False).mean_return


def main(options: Options) -> None:
    torch.set_num_threads(1)
    title = f"esper/{options.env.title()}-v0, {options.steps:,} steps"
    table = Table("", "ceiling", "reached", "seconds a run", title=title)
    records: list[dict[str, Any]] = []
    ceilings = (locksmith if options.env == "locksmith" else archer).CEILINGS
    for name in options.rows or ceilings:
        began = time.perf_counter()
        returns = [play(options.env, name, seed, options.steps) for seed in options.seeds]
        seconds = (time.perf_counter() - began) / len(returns)
        row = {"row": name, "ceiling": ceilings[name], "steps": options.steps, "seeds": options.seeds}
        records.append(row | {"returns": returns})
        each = ", ".join(f"{r:.3f}" for r in returns)
        table.add_row(name, f"{ceilings[name]:.3f}", f"{np.mean(returns):.3f} ({each})", f"{seconds:.0f}")
    Console(width=120).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
