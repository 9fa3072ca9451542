"""What controllers come to on validation data, the rule that holds auditions among them, and what their runs cost.

    python benchmarks/auditions.py --tasks digits library_lm --policies wait heuristic audition tamiyo

All policies play the same episodes; no test data are touched, so rules may be improved by it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import validation_objectives
from esper.files import write_json_atomic
from esper.lifecycle import Stage
from esper.tamiyo.policy.registry import make_policy


def play(task: str, policy: str, seeds: list[int]) -> dict[str, Any]:
    """J of one episode per seed, the blocks that were kept, and processor seconds."""
    began = time.process_time()
    env = GrowthVectorEnv(len(seeds), task, autoreset_mode="NextStep")
    objectives = validation_objectives(env, make_policy(policy), seeds)
    kept = [
        [slot.blueprint_name for slot in report.reading.slots if slot.alpha > 0 and slot.stage is not Stage.TRAINING]
        for report in env.reports
    ]
    env.close()
    seconds = time.process_time() - began
    return {"task": task, "policy": policy, "J": objectives.tolist(), "kept": kept, "processor_seconds": seconds}


def main() -> None:
    """Print a row per task and policy, and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["digits", "mnist1d"])
    parser.add_argument("--policies", nargs="+", default=["wait", "heuristic", "audition", "tamiyo"])
    parser.add_argument("--episode-seeds", type=int, nargs="+", default=[5001, 5002, 5003, 5004])
    parser.add_argument("--out", type=Path, default=Path("auditions.json"))
    options = parser.parse_args()
    written = []
    print("| task | controller | J, points | mean | processor s |\n" + "|---" * 5 + "|")
    for task in options.tasks:
        for policy in options.policies:
            row = play(task, policy, options.episode_seeds)
            points = [100 * objective for objective in row["J"]]
            shown = ", ".join(f"{p:.1f}" for p in points)
            mean = sum(points) / len(points)
            print(f"| `{task}` | {policy} | {shown} | {mean:.1f} | {row['processor_seconds']:.0f} |", flush=True)
            written.append(row)
            write_json_atomic(options.out, {"episode_seeds": options.episode_seeds, "rows": written})


if __name__ == "__main__":
    main()
