"""Do a warm-up or a larger learning rate for new parameters pay? The same growth, other steps of the seeds.

    python benchmarks/new_parameters.py --seeds 4

A convolution grows in every slot from the start (policy "fixed"), 16 passes over the data, Adam, cosine. After each
step of the optimizer the steps of the seeds' parameters are multiplied by a factor of their age in steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from esper.commands.grow_run import draw_order, train_one_epoch
from esper.growth import Growth
from esper.tasks import Task, get_task

EPOCHS = 16
FACTORS: dict[str, Callable[[int], float]] = {
    "as the host": lambda age: 1.0,
    "warm-up over 50 steps": lambda age: min(age / 50, 1.0),
    "3 times": lambda age: 3.0,
    "3 times, to 1 in 200 steps": lambda age: max(3.0 - age / 100, 1.0),
}
"""Factor on a step of a seed's parameter, by its age in steps (1 is its first)."""


def scale_new_steps(optimizer: torch.optim.Optimizer, growth: Growth, factor: Callable[[int], float]) -> None:
    """From now on multiply the steps of the seeds' parameters."""
    ages: dict[nn.Parameter, int] = {}
    before: dict[nn.Parameter, torch.Tensor] = {}

    def remember(*_: Any) -> None:
        before.clear()
        before.update({p: p.detach().clone() for p in growth.network.seed_parameters()})

    def scale(*_: Any) -> None:
        for parameter, old in before.items():
            ages[parameter] = ages.get(parameter, 0) + 1
            with torch.no_grad():
                parameter.copy_(old + factor(ages[parameter]) * (parameter - old))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(scale)


def run(task: Task, factor: Callable[[int], float], seed: int) -> float:
    """Validation score of one grown network."""
    torch.manual_seed(seed)
    splits, model = task.splits(), task.build_host()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

    def evaluate() -> tuple[float, float]:
        output = model.eval()(splits.val_x)
        return float(task.loss(output, splits.val_y)), float(task.score(output, splits.val_y))

    example = splits.val_x[:2]
    growth = Growth(model, optimizer, slots=task.slots, example_input=example, policy="fixed", horizon=EPOCHS,
                    contributions=False, seed=seed)  # fmt: skip
    scale_new_steps(optimizer, growth, factor)
    for _ in range(EPOCHS):
        train_one_epoch(task, model, optimizer, splits, draw_order(task, splits, progress=0.0))
        scheduler.step()
        growth.step(evaluate)
    return growth.history[-1].score


def main() -> None:
    """Print the mean of each factor, and its difference to no factor, paired by seed, with two standard errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--tasks", nargs="+", default=["digits", "mnist1d"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        task = get_task(name)
        reference = None
        for label, factor in FACTORS.items():
            scores = 100 * np.array([run(task, factor, seed) for seed in range(options.seeds)])
            reference = scores if reference is None else reference
            gain = scores - reference
            error = 2 * gain.std(ddof=1) / len(gain) ** 0.5
            print(f"{name}, {label}: {scores.mean():.1f} % ({gain.mean():+.1f} ± {error:.1f})", flush=True)


if __name__ == "__main__":
    main()
