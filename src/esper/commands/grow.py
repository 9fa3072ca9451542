"""``esper grow``: grow one network, on a task or on one's own data, and take it away."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from esper.figure import GrowthRecord, growth_figure
from esper.files import from_plain, read_json, write_json_atomic, written_whole
from esper.growth import Growth
from esper.growth.export import export_model
from esper.programs import MANIFEST, check_packages
from esper.tasks import SCHEDULES, DataOptions, Splits, Task, auto_host, get_task, load_data
from esper.tasks.reading import Rescale, Rows, Served, manifest

CONTRIBUTION_SAMPLES = 512
"""Validation samples on which contributions are measured."""

OPTIONS = "command.json"
"""The file of a run's options, from which it is resumed."""

CHECKPOINT = "checkpoint.pt"
"""The file of a run's state after its last epoch; gone once the run is done."""


@dataclass(frozen=True)
class GrowCommand:
    """Grow one network on a task or on your own data: figure, summary, test accuracy, and the model as a file."""

    task: str = "mnist1d"
    """Task (see `esper tasks`); ignored with --data."""
    data: Path | None = None
    """Your own data: arrays (.npz), a table (.csv, .tsv, .parquet), a text (.txt), or a directory with a folder of
    images for each class, IDX files or CIFAR-10 binary files."""
    read: Annotated[DataOptions, tyro.conf.arg(name="")] = field(default_factory=DataOptions)
    """How your own data are read."""
    host: Literal["auto"] = "auto"
    """Host for your own data: a small network chosen by the form of the data."""
    width: float = 1.0
    """Factor on the host's channels."""
    depth: int = 1
    """Layers in each of the host's blocks."""
    policy: str = "heuristic"
    """heuristic, audition, fixed, random, wait, tamiyo, or the directory of a trained policy."""
    budget: int | None = 5000
    """Cap on added parameters."""
    flops_budget: int | None = None
    """Cap on added FLOPs of a forward pass over one sample."""
    rent: float = 0.02
    """Price of a doubling of the parameters, in points of score (0.02 is two points)."""
    epochs: int = 60
    """Passes over the training data; after each the policy decides."""
    batch_size: int | None = None
    """Samples in a training batch; by default the task's own, for your own data an eighth of them, from 4 to 64."""
    learning_rate: float | None = None
    """Of Adam, at its highest; by default the task's own."""
    schedule: str = "cosine"
    """How the learning rate moves: constant, cosine (to 0), or warmup-stable-decay."""
    device: str = "cpu"
    """Where it is trained: cpu, cuda, cuda:1, ...."""
    seed: int = 0
    """Decides initial weights, the order of the data, and what the policy draws."""
    out: Path | None = None
    """Directory of the run [default: runs/grow-DATE-TIME]."""
    resume: Path | None = None
    """Directory of a run to go on with; all other options are then read from it."""
    export: Literal["pt2", "onnx"] = "pt2"
    """Format of the exported model."""
    quiet: bool = False
    """No progress bar."""

    def run(self, console: Console) -> None:
        """Grow, then write everything into the run directory and say where."""
        if self.resume is not None:
            read_options(self.resume)._run(self.resume, console, resumed=True)
            return
        directory = self.out or Path("runs") / datetime.now().strftime("grow-%Y%m%d-%H%M%S")
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise FileExistsError(f"{directory} exists and is not an empty directory; choose another --out")
        self._run(directory, console, resumed=False)

    def check(self) -> None:
        """Raise ValueError for options out of range."""
        if self.epochs < 2:
            raise ValueError(f"--epochs must be 2 or more (the first is the host's alone), got {self.epochs}")
        for name, value in (("--learning-rate", self.learning_rate), ("--width", self.width)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value:g}")
        for name, count in (("--depth", self.depth), ("--batch-size", self.batch_size)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more, got {count}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"--schedule must be one of {', '.join(SCHEDULES)}; got '{self.schedule}'")
        self.read.check()
        check_packages(f".{self.export}")
        check_device(self.device)

    def build_task(self) -> Task:
        """The task that was asked for, or one of one's own data."""
        if self.data is not None:
            return auto_host(
                load_data(self.data, options=self.read), name=self.data.resolve().stem, batch_size=self.batch_size
            )
        task = get_task(self.task)
        if self.batch_size is not None:
            task.batch_size = self.batch_size
        return task

    def _run(self, directory: Path, console: Console, *, resumed: bool) -> None:
        self.check()
        task = self.build_task()
        for label, what in facts(task, self.width, self.depth).items():
            console.print(f"  {label}: {what}", highlight=False, markup=False, soft_wrap=True)
        run = GrowRun(self, task)
        if resumed:
            run.load(directory)
            console.print(f"Going on after epoch {run.epochs_done} of {self.epochs}.")
        try:
            self._train(run, directory, console)
        except KeyboardInterrupt:
            console.print(_what_is_kept(directory, run.epochs_done, self.epochs), soft_wrap=True)
            raise
        self._write(run, directory, console)

    def _train(self, run: GrowRun, directory: Path, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet) as progress:
            bar = progress.add_task("growing", total=self.epochs, completed=run.epochs_done)
            while run.epochs_done < self.epochs:
                step = run.epoch()
                run.save(directory)
                if not step.decided.startswith(("WAIT", "no decision")):
                    score = run.words(step.score)
                    progress.console.print(f"epoch {step.decision}: validation {score}, {step.decided}")
                progress.update(bar, advance=1, description=f"growing: validation {run.words(step.score)}")

    def _write(self, run: GrowRun, directory: Path, console: Console) -> None:
        growth, splits = run.growth, run.splits
        growth.summary(console)
        if growth.network.added_params == 0:
            console.print("Nothing that was tried has been kept: the model is the host alone.")
        grown = growth.grown_model().eval()
        with torch.no_grad():
            output = grown(splits.test_x)
        test, score = float(run.task.score(output, splits.test_y)), growth.history[-1].score
        console.print(
            f"{run.test_words(output, test)} (validation {run.words(score)})", highlight=False, soft_wrap=True
        )
        rows = splits.rows or Rows(read=nn.Identity(), example=splits.train_x[:2].cpu())
        served = Served(rows, grown.cpu()).eval()
        with torch.no_grad():
            described = {"task": run.task.name, **manifest(rows, served(rows.example)), "test_score": test}
        record = {**growth.record(), "task": run.task.name, "policy": self.policy}
        results = {"test_score": test, "validation_score": score, "added_params": growth.network.added_params}
        inferred = facts(run.task, self.width, self.depth)
        written = {"growth.json": {**results, "data": inferred, "rows": rows.drawn, "record": record}}
        written[MANIFEST] = described
        for name, content in written.items():
            write_json_atomic(directory / name, content)
        growth_figure(GrowthRecord.from_json(record), directory / "growth.png")
        export_model(served, rows.example, directory / f"grown.{self.export}", described)
        (directory / CHECKPOINT).unlink()
        console.print("Written:")
        for name in ("growth.json", "growth.png", MANIFEST, f"grown.{self.export}"):
            console.print(f"  {directory / name}", soft_wrap=True)


# ---------------------------------------------------------------------- a run


class GrowRun:
    """One network growing on a task: epoch by epoch, and saved after each.

    Args:
        options: How it is trained.
        task: On what.
    """

    def __init__(self, options: GrowCommand, task: Task) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.task = task
        self.splits: Splits = task.splits().to(options.device)
        self.epochs_done = 0
        self.model = task.build_host(options.width, options.depth).to(options.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate or task.learning_rate)
        schedule = SCHEDULES[options.schedule]
        self.scheduler = LambdaLR(self.optimizer, lambda done: schedule(done, options.epochs))
        self.growth = Growth(
            self.model,
            self.optimizer,
            slots=task.slots,
            example_input=self.splits.val_x[:2],
            policy=options.policy,
            budget=options.budget,
            flops_budget=options.flops_budget,
            rent=options.rent,
            horizon=options.epochs,
            contributions=lambda: self.evaluate(CONTRIBUTION_SAMPLES),
            train_samples=len(self.splits.train_x),
            chance_score=task.chance_score,
            seed=options.seed,
            causal=task.causal,
        )

    def evaluate(self, samples: int | None = None) -> tuple[float, float]:
        """Loss and score on validation data."""
        x, y = self.splits.val_x[:samples], self.splits.val_y[:samples]
        output = self.model.eval()(x)
        return float(self.task.loss(output, y)), float(self.task.score(output, y))

    def epoch(self) -> Any:
        """Train for one epoch and let the network decide; the step."""
        progress = self.epochs_done / self.options.epochs
        train_loss = train_one_epoch(self.task, self.model, self.optimizer, self.splits, progress)
        self.scheduler.step()
        step = self.growth.step(self.evaluate, train_loss)
        self.epochs_done += 1
        return step

    # ------------------------------------------------------------------ state

    def save(self, directory: Path) -> None:
        """Write options and state to ``directory``, each whole or not at all."""
        if not (directory / OPTIONS).exists():
            write_json_atomic(directory / OPTIONS, asdict(self.options))
        state = {
            "epochs_done": self.epochs_done,
            "data": _checksum(self.splits),
            "growth": self.growth.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
        }
        with written_whole(directory / CHECKPOINT) as unfinished:
            torch.save(state, unfinished)

    def load(self, directory: Path) -> None:
        """Become what :meth:`save` wrote.

        Raises:
            FileNotFoundError: When there is no checkpoint.
            ValueError: When the data are others now.
        """
        path = directory / CHECKPOINT
        if not path.exists():
            raise FileNotFoundError(f"{directory}: no {CHECKPOINT}; the run is done, or was stopped before one epoch")
        state = torch.load(path, weights_only=True, map_location=self.options.device)
        if state["data"] != _checksum(self.splits):
            raise ValueError(f"{directory}: the data are not those that the run began with; bring them back to go on")
        self.growth.load_state_dict(state["growth"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"].cpu())
        self.epochs_done = state["epochs_done"]

    # ------------------------------------------------------------------ words

    def words(self, score: float) -> str:
        """A score as it is called: a share of right answers, or R²."""
        return f"R² {score:.3f}" if self.splits.train_y.is_floating_point() else f"{score:.1%}"

    def test_words(self, output: Tensor, score: float) -> str:
        """The score on test data, and how far it can be trusted."""
        y = self.splits.test_y
        if y.is_floating_point():
            error = float((output.squeeze(-1) - y).square().mean().sqrt())
            answer = self.splits.rows.answer if self.splits.rows else None
            unit = float(answer.std) if isinstance(answer, Rescale) else 1.0
            return f"Test: R² {score:.3f}, root mean square error {error * unit:.4g} ({len(y):,} samples)"
        low, high = binomtest(round(score * y.numel()), y.numel()).proportion_ci(method="wilson")
        return f"Test accuracy: {score:.1%} ({y.numel():,} answers, 95 % interval {low:.1%} to {high:.1%})"


def train_one_epoch(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, splits: Splits, progress: float
) -> float:
    """One pass over the training data that are seen at ``progress`` in [0, 1) of the run; the mean training loss."""
    model.train()
    losses = []
    for x, y in batches(task, splits, progress):
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def batches(task: Task, splits: Splits, progress: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The training data that are seen at ``progress`` in [0, 1) of a run, in a new order, in whole batches."""
    stretch, size = task.stretch(progress), task.batch_size
    order = (stretch.start + torch.randperm(len(stretch))).to(splits.train_x.device)
    for first in range(0, len(order) - size + 1, size):
        chosen = order[first : first + size]
        yield splits.train_x[chosen], splits.train_y[chosen]


# ---------------------------------------------------------------------- options and words


def read_options(directory: Path) -> GrowCommand:
    """The options of the run in ``directory``.

    Raises:
        FileNotFoundError: When there is no run.
        ValueError: When its options cannot be read.
    """
    path = directory / OPTIONS
    if not path.exists():
        raise FileNotFoundError(f"{directory}: expected a run of `esper grow` to go on with, found no {OPTIONS}")
    try:
        return from_plain(GrowCommand, read_json(path), path)
    except ValueError as error:
        raise ValueError(f"{path}: not the options of `esper grow` ({error}); begin a new run") from error


def check_device(name: str) -> None:
    """Raise ValueError for a device that this machine, or this PyTorch, does not have."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name or repr(name)} cannot be used here ({reason}); leave it out to train on the CPU"
        ) from error


def facts(task: Task, width: float, depth: int) -> dict[str, str]:
    """What is trained on what: the data as they were read, and the host."""
    splits = task.splits()
    notes = dict(splits.rows.notes) if splits.rows else {}
    parameters = sum(parameter.numel() for parameter in task.build_host(width, depth).parameters())
    sizes = "{:,} rows to train, {:,} to validate, {:,} to test".format(*splits.sizes)
    return {
        "data": task.description,
        **{"splits": sizes, **notes},
        "batch": f"{task.batch_size} rows (--batch-size)",
        "host": f"{parameters:,} parameters, slots {', '.join(task.slots)} (--width, --depth)",
    }


def _what_is_kept(directory: Path, done: int, epochs: int) -> str:
    if not (directory / CHECKPOINT).exists():
        return "Stopped before the end of the first epoch: nothing has been kept."
    return f"Stopped after epoch {done} of {epochs}. All is kept: `esper grow --resume {directory}` goes on."


def _checksum(splits: Splits) -> int:
    """Tells data apart."""
    checksum = 0
    for tensor in (splits.train_x, splits.train_y, splits.val_x, splits.val_y):
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), checksum)
    return checksum
