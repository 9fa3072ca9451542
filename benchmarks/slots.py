"""How good is the Tamiyo that comes with Esper on other numbers of slots than the three that she learned on?

    python benchmarks/slots.py --seeds 8

The host of `mnist1d` with 1, 3, 8 and 24 blocks, a slot after each; 24 decisions, rent 0.02, no cap; test data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import Interval, bootstrap, evaluation_seeds, paired_difference, run_episodes
from esper.files import write_json_atomic
from esper.tamiyo.policy.registry import POLICIES
from esper.tasks.hosts import block_names, scaled, sequence_host
from esper.tasks.signals import MNIST1D

ARMS = ("wait", "fixed", "heuristic", "tamiyo")


class Deep(MNIST1D):
    """The task with a host of any number of blocks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.name = f"mnist1d with {count} slots"
        self.slots = block_names(count)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """The blocks of ``mnist1d``, as many as there are slots."""
        return sequence_host(1, 8, 10, scaled(16, width), depth, self.slots)


def main() -> None:
    """Print a table, mean and 95 % interval over seeds, and write all episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 3, 8, 24])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("slots.json"))
    options = parser.parse_args()
    seeds = evaluation_seeds(options.seeds, seed=0, purpose="other numbers of slots")
    written: list[dict[str, Any]] = []
    print(
        "| slots | controller | test accuracy, % | added parameters | J, points | J(Tamiyo) − J |\n" + "|---" * 6 + "|"
    )
    for count in options.slots:
        found = {}
        for arm in ARMS:
            workers = min(options.workers, options.seeds)
            env = GrowthVectorEnv(options.seeds, Deep(count), autoreset_mode="NextStep", num_workers=workers)
            try:
                found[arm] = run_episodes(env, POLICIES[arm](), seeds, arm=arm)
            finally:
                env.close()
        scores = {arm: {"": [100 * result.test_J for result in results]} for arm, results in found.items()}
        for arm, results in found.items():
            accuracy = 100 * np.mean([result.test_score for result in results])
            added = np.mean([result.added_params for result in results])
            difference = "" if arm == "tamiyo" else points(paired_difference(scores["tamiyo"], scores[arm]))
            J = points(bootstrap(scores[arm]))
            print(f"| {count} | {arm} | {accuracy:.1f} | {added:,.0f} | {J} | {difference} |", flush=True)
            written += [result.to_json() for result in results]
        write_json_atomic(options.out, {"seeds": seeds, "episodes": written})


def points(interval: Interval) -> str:
    """An interval with one decimal."""
    return f"{interval:.1f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
