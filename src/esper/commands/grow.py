"""``esper grow``: grow one network, on a task or on one's own arrays, and take it away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from esper.figure import GrowthRecord, growth_figure
from esper.files import write_json_atomic
from esper.growth import Growth
from esper.tasks import Task, auto_host, get_task, load_data

CONTRIBUTION_SAMPLES = 512
"""Validation samples on which contributions are measured."""


@dataclass(frozen=True)
class GrowCommand:
    """Grow one network on a task or on your own data: figure, summary, test accuracy, and the model as a file."""

    task: str = "mnist1d"
    """Task (see `esper tasks`); ignored with --data."""
    data: Path | None = None
    """Your own data: a .npz file with x and y, or a directory with IDX or CIFAR-10 binary files."""
    host: Literal["auto"] = "auto"
    """Host for your own data: a small network chosen by the form of the data."""
    policy: str = "heuristic"
    """heuristic, fixed, random, wait, tamiyo, or the directory of a trained policy."""
    budget: int | None = 5000
    """Cap on added parameters."""
    flops_budget: int | None = None
    """Cap on added FLOPs of a forward pass over one sample."""
    rent: float = 0.02
    """Price of a doubling of the parameters, in points of score (0.02 is two points)."""
    epochs: int = 60
    """Passes over the training data; after each the policy decides."""
    learning_rate: float | None = None
    """Of Adam, falling to 0 along a cosine; by default the task's own."""
    seed: int = 0
    """Decides initial weights, the order of the data, and what the policy draws."""
    out: Path | None = None
    """Directory of the run [default: runs/grow-DATE-TIME]."""
    export: Literal["pt2", "onnx"] = "pt2"
    """Format of the exported model."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        if self.epochs < 2:
            raise ValueError(f"--epochs must be 2 or more (the first is the host's alone), got {self.epochs}")

    def run(self, console: Console) -> None:
        """Grow, then write everything into the run directory and say where."""
        task = get_task(self.task) if self.data is None else auto_host(load_data(self.data), name=self.data.stem)
        directory = self._directory()
        growth, score = self.grow(task, console)
        growth.summary(console)
        if growth.network.added_params == 0:
            console.print("Nothing that was tried has been kept: the model is the host alone.")
        grown = growth.grown_model().eval()
        splits = task.splits()
        with torch.no_grad():
            test = float(task.score(grown(splits.test_x), splits.test_y))
        console.print(f"Test accuracy: {test:.1%} (validation {score:.1%})")
        record = {**growth.record(), "task": task.name, "policy": self.policy}
        results = {"test_score": test, "validation_score": score, "added_params": growth.network.added_params}
        write_json_atomic(directory / "growth.json", {**results, "record": record})
        growth_figure(GrowthRecord.from_json(record), directory / "growth.png")
        growth.export(directory / f"grown.{self.export}")
        console.print("Written:")
        for name in ("growth.json", "growth.png", f"grown.{self.export}"):
            console.print(f"  {directory / name}", soft_wrap=True)

    def _directory(self) -> Path:
        directory = self.out or Path("runs") / datetime.now().strftime("grow-%Y%m%d-%H%M%S")
        if directory.exists() and any(directory.iterdir()):
            raise FileExistsError(f"{directory} exists and is not empty; choose another --out")
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def grow(self, task: Task, console: Console) -> tuple[Growth, float]:
        """Train the task's host and let it grow; the growth, and the last validation score."""
        torch.manual_seed(self.seed)
        splits, model = task.splits(), task.build_host()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate or task.learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)

        def evaluate(samples: int | None = None) -> tuple[float, float]:
            x, y = splits.val_x[:samples], splits.val_y[:samples]
            output = model.eval()(x)
            return float(task.loss(output, y)), float(task.score(output, y))

        growth = Growth(
            model,
            optimizer,
            slots=task.slots,
            example_input=splits.val_x[:2],
            policy=self.policy,
            budget=self.budget,
            flops_budget=self.flops_budget,
            rent=self.rent,
            horizon=self.epochs,
            contributions=lambda: evaluate(CONTRIBUTION_SAMPLES),
            train_samples=len(splits.train_x),
            chance_score=task.chance_score,
            seed=self.seed,
            causal=task.causal,
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet) as progress:
            bar = progress.add_task("growing", total=self.epochs)
            for epoch in range(self.epochs):
                train_loss = train_one_epoch(task, model, optimizer, epoch / self.epochs)
                scheduler.step()
                step = growth.step(evaluate, train_loss)
                if not step.decided.startswith(("WAIT", "no decision")):
                    progress.console.print(f"epoch {step.decision}: validation {step.score:.1%}, {step.decided}")
                progress.update(bar, advance=1, description=f"growing: validation {step.score:.1%}")
        return growth, growth.history[-1].score


def train_one_epoch(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> float:
    """One pass over the training data that are seen at ``progress`` in [0, 1) of the run; the mean training loss."""
    model.train()
    losses = []
    for x, y in batches(task, progress):
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def batches(task: Task, progress: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The training data that are seen at ``progress`` in [0, 1) of a run, in a new order, in whole batches."""
    splits, stretch = task.splits(), task.stretch(progress)
    order = stretch.start + torch.randperm(len(stretch))
    for first in range(0, len(order) - task.batch_size + 1, task.batch_size):
        chosen = order[first : first + task.batch_size]
        yield splits.train_x[chosen], splits.train_y[chosen]
