"""esper/Locksmith-v0 with all three abilities, and without each of them, beside the computed ceilings.

python benchmarks/locksmith.py                  # 3 seeds each
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FilterObservation
from rich.console import Console
from rich.table import Table

from esper.simic import NetworkOptions, PPOConfig, TrainConfig, evaluate, train
from esper.simic.locksmith import CEILINGS, Locksmith
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.vectorized import make_bundle

PPO = PPOConfig(learning_rate="linear:2e-3", minibatches=8, gamma=0.5)
"""A reward follows its action at once, so little foresight is needed."""


@dataclass
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed and row."""
    steps: int = 120_000
    """Of each run."""
    output: Path | None = None
    """Where to write the results as JSON."""


def play(missing: str, seed: int, steps: int) -> float:
    """Mean return of a policy trained without the ability that is ``missing``, actions drawn, 400 episodes."""
    make = (lambda: FilterObservation(Locksmith(), ["door", "key"])) if missing == "no mask" else Locksmith
    envs = SyncVectorEnv([make] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    network = NetworkOptions(recurrent=missing != "no memory")
    config = TrainConfig(seed=seed, total_steps=steps, ppo=PPO, network=network)
    policy = make_bundle(EnvironmentAdapter(envs), config)
    if missing == "independent heads":
        door = policy.network.tree.heads[0]
        door.conditioning.requires_grad_(False)
        torch.nn.init.zeros_(door.conditioning.weight)
    train(envs, config=config, policy=policy)
    return evaluate(policy, envs, episodes=400, deterministic=False).mean_return


def main(options: Options) -> None:
    torch.set_num_threads(1)
    table = Table("", "ceiling", "reached", "seconds a run", title=f"esper/Locksmith-v0, {options.steps:,} steps")
    records = []
    for name, ceiling in CEILINGS.items():
        began = time.perf_counter()
        returns = [play(name, seed, options.steps) for seed in options.seeds]
        seconds = (time.perf_counter() - began) / len(returns)
        records.append(
            {"row": name, "ceiling": ceiling, "steps": options.steps, "seeds": options.seeds, "returns": returns}
        )
        each = ", ".join(f"{r:.3f}" for r in returns)
        table.add_row(name, f"{ceiling:.3f}", f"{np.mean(returns):.3f} ({each})", f"{seconds:.0f}")
    Console(width=120).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
