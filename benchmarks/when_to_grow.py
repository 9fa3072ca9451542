"""When to grow, and from what? Depth doubled in mid-run, beside the deep network from scratch.

    python benchmarks/when_to_grow.py --task library_lm --steps 2000 --seeds 3

A transformer of three blocks gets a second block behind each at 25, 50 or 75 % of the run: one that begins as the
identity (zero), one with random weights (random), or a copy of the block before it (copied). Adam; the learning rate is
level and falls over the last fifth of the run. Beside it stand the deep network from scratch over the whole run and, as
the plainest way to save, over as much of it as costs what a grown one costs. Validation data, differences paired by
seed. A run that was interrupted goes on where it stopped: finished runs are in the file of ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper.files import write_json_atomic
from esper.tasks import Task, get_task
from esper.tasks.schedules import SCHEDULES

SHARES = (0.25, 0.5, 0.75)
BEGINNINGS = ("zero", "random", "copied")


def second_blocks(model: nn.Module, task: Task) -> list[tuple[nn.Sequential, nn.Module]]:
    """Take out the second block of each slot; where it belongs, and the block."""
    taken = []
    for slot in task.slots:
        blocks = model.get_submodule(slot)
        assert isinstance(blocks, nn.Sequential)
        taken.append((blocks, blocks[1]))
        del blocks[1]
    return taken


def begin(block: nn.Module, before: nn.Module, beginning: str) -> nn.Module:
    """The block that is put in, by where its weights come from."""
    if beginning == "copied":
        return copy.deepcopy(before)
    if beginning == "zero":
        for last in ("0.layer.project", "1.layer.2"):
            nn.init.zeros_(block.get_submodule(last).get_parameter("weight"))
            nn.init.zeros_(block.get_submodule(last).get_parameter("bias"))
    return block


def flops(model: nn.Module, task: Task) -> int:
    """Of one training step."""
    x, y = task.splits().train_x[: task.batch_size], task.splits().train_y[: task.batch_size]
    with FlopCounterMode(display=False) as counter:
        task.loss(model(x), y).backward()
    model.zero_grad()
    return counter.get_total_flops()


def run(task: Task, steps: int, seed: int, growth: tuple[float, str] | None) -> dict[str, float]:
    """One training; ``growth`` says at what share of it the second blocks come, and how they begin."""
    torch.manual_seed(seed)
    splits, model = task.splits(), task.build_host(depth=2)
    later = [] if growth is None else second_blocks(model, task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    order, spent, step_flops = np.random.default_rng(seed), 0, flops(model, task)
    for step in range(steps):
        if growth is not None and step == round(growth[0] * steps):
            for blocks, block in later:
                blocks.append(begin(block, blocks[0], growth[1]))
                optimizer.add_param_group({"params": list(blocks[1].parameters())})
            step_flops = flops(model, task)
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * SCHEDULES["warmup-stable-decay"](step, steps)
        rows = order.integers(len(splits.train_x), size=task.batch_size)
        optimizer.zero_grad()
        task.loss(model(splits.train_x[rows]), splits.train_y[rows]).backward()
        optimizer.step()
        spent += step_flops
    model.eval()
    with torch.no_grad():
        output = model(splits.val_x)
        score, loss = task.score(output, splits.val_y), task.loss(output, splits.val_y)
    return {"score": 100 * float(score), "loss": float(loss), "flops": spent}


def main() -> None:
    """Print, for every cell, the score less that of the deep network from scratch and the FLOPs saved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="library_lm", choices=["library_lm", "glyph_transformer"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("when_to_grow.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = get_task(options.task)
    found: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.is_file() else {}

    def mean(label: str, steps: int, growth: tuple[float, str] | None) -> tuple[np.ndarray, float]:
        """Scores of all seeds, and FLOPs."""
        for seed in range(options.seeds):
            key = f"{options.task}, {options.steps} steps, {label}, seed {seed}"
            if key not in found:
                found[key] = run(task, steps, seed, growth)
                write_json_atomic(options.out, found)
        runs = [found[f"{options.task}, {options.steps} steps, {label}, seed {s}"] for s in range(options.seeds)]
        return np.array([r["score"] for r in runs]), runs[0]["flops"]

    deep, most = mean("deep from scratch", options.steps, None)
    print(f"{options.task}, {options.steps} steps: deep from scratch {deep.mean():.2f} %", flush=True)

    def report(label: str, scores: np.ndarray, spent: float) -> None:
        gain = scores - deep
        error = 2 * gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
        print(f"{label}: {gain.mean():+.2f} ± {error:.2f} points, {100 * (1 - spent / most):.0f} % saved", flush=True)

    for share in SHARES:
        for beginning in BEGINNINGS:
            label = f"grown at {share:.0%}, {beginning}"
            scores, spent = mean(label, options.steps, (share, beginning))
            report(label, scores, spent)
        label = f"deep from scratch at the FLOPs of growing at {share:.0%}"
        report(label, *mean(label, round(options.steps * spent / most), None))


if __name__ == "__main__":
    main()
