"""Which rent serves a user who gives a budget? The best score within it, as the rent rises.

    python benchmarks/rent_within_budget.py --out benchmarks/results/rent_within_budget.json

`esper grow` with its budget of 5,000 parameters, by a rule and by the shipped Tamiyo, who both see the rent. What such
a user wants is the best score; of two rents that reach it, the higher one leaves a smaller network. So the rule, which
was said before anything was measured: **the largest rent whose mean validation score over tasks and controllers is
within half a point of the best one**. Test data are not touched. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from esper.commands.grow import GrowCommand
from esper.commands.grow_run import GrowRun
from esper.files import write_json_atomic

EPOCHS = {"wine": 60, "spirals": 40, "digits": 30, "mnist1d": 16}
"""Task → epochs, so that all take about as long."""

RENTS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04)
POLICIES = ("heuristic", "tamiyo")
WITHIN = 0.005
"""How far below the best mean score the chosen rent may be."""


def run(task: str, policy: str, rent: float, seed: int, budget: int) -> dict[str, float]:
    """Validation score at the end, and added parameters, of one growth."""
    command = GrowCommand(task=task, policy=policy, rent=rent, seed=seed, budget=budget, epochs=EPOCHS[task])
    growing = GrowRun(command, command.build_task())
    for _ in range(command.epochs):
        growing.epoch()
    result = growing.result()
    return {"score": result.score, "added_params": float(result.added_params)}


def mean(found: Mapping[str, Mapping[str, float]], what: str, rent: float, *parts: str) -> float:
    """Mean of one number over all runs under this rent whose task or policy is among ``parts``."""
    return fmean(
        result[what]
        for key, result in found.items()
        if (words := key.split())[2] == str(rent) and all(part in words for part in parts)
    )


def table(found: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> str:
    """A row for each rent, score and added parameters by controller and task, and which one the rule chooses."""
    columns = list(product(POLICIES, tasks))
    lines = [
        "| rent | " + " | ".join(" ".join(column) for column in columns) + " | mean |",
        "|---" * (len(columns) + 2),
    ]
    lines[1] += "|"
    for rent in RENTS:
        cells = [f"{mean(found, 'score', rent, *c):.1%}, {mean(found, 'added_params', rent, *c):,.0f}" for c in columns]
        lines.append(f"| {rent:g} | {' | '.join(cells)} | {100 * mean(found, 'score', rent):.2f} |")
    best = max(mean(found, "score", rent) for rent in RENTS)
    chosen = max(rent for rent in RENTS if mean(found, "score", rent) >= best - WITHIN)
    return "\n".join([*lines, f"The rule chooses {chosen:g}."])


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("rent_within_budget.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed, task, policy, rent in product(range(options.seeds), options.task, POLICIES, RENTS):
        key = f"{task} {policy} {rent} {seed}"
        if key not in found:
            found[key] = run(task, policy, rent, seed, options.budget)
            write_json_atomic(options.out, found)
            print(key, found[key], flush=True)
    print(table(found, options.task))


if __name__ == "__main__":
    main()
