"""``esper grow``: grow one network, on a task or on one's own data, and take it away."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from esper.commands.grow_run import CHECKPOINT, OPTIONS, GrowRun
from esper.figure import growth_figure
from esper.files import from_plain, read_json, write_json_atomic
from esper.growth.export import export_model
from esper.growth.log import step_row, verdict_row
from esper.growth.summary import summary
from esper.programs import MANIFEST, check_packages
from esper.record import told
from esper.tasks import SCHEDULES, DataOptions, Rehosted, Task, auto_host, get_task, load_data
from esper.tasks.reading import Rows, Served, manifest
from esper.tracking import TensorBoard, Tracking, check_trackers

RESULT = "growth.json"
"""The file of what came of it."""


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
    host: str = "auto"
    """The network that grows: by default the task's own, for your own data a small one chosen by their form; or the
    name of a host that you have registered, or `module:name` of a function that builds one."""
    slot: tuple[str, ...] = ()
    """Names of the submodules of your own host whose outputs may grow; by default they are proposed."""
    width: float = 1.0
    """Factor on the host's channels."""
    depth: int = 1
    """Layers in each of the host's blocks."""
    policy: str = "tamiyo"
    """tamiyo (the one that comes with Esper), heuristic, audition, fixed, random, wait, or the directory of a trained
    policy."""
    budget: int | None = 5000
    """Cap on added parameters."""
    flops_budget: int | None = None
    """Cap on added FLOPs of a forward pass over one sample."""
    rent: float | None = None
    """Price of a doubling of the parameters, in points of score: by default 0.0025 (a quarter of a point), since the
    budget already caps the size, and without a budget 0.02 (two points)."""
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
    """Directory of a run to go on with; all other options but `--quiet` are then read from it."""
    export: Literal["pt2", "onnx"] = "pt2"
    """Format of the exported model."""
    control: bool = False
    """Train the host alone beside it, on the same batches, to tell whether growing was worth it; takes its compute once
    more, and changes nothing about the growth."""
    track: tuple[str, ...] = ()
    """Trackers that every step is logged to, beside TensorBoard: `wandb`, `mlflow`, `trackio`."""
    quiet: bool = False
    """No progress bar."""

    RESUMED_WITH: ClassVar = ("quiet",)

    def run(self, console: Console) -> None:
        """Grow, then write everything into the run directory and say where."""
        if self.resume is not None:
            begun = replace(read_options(self.resume), quiet=self.quiet)
            begun._run(self.resume, console, resumed=True)
            return
        self.read.check()
        if self.data is None and self.read.said:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in self.read.said)
            raise ValueError(f"{names}: the data of a task are read as they are; of use with --data only")
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
        if self.slot and self.host == "auto":
            raise ValueError(f"--slot names slots of a host of your own, and needs --host, got {' '.join(self.slot)}")
        self.read.check()
        check_packages(f".{self.export}")
        check_trackers(self.track)
        check_device(self.device)

    def build_task(self) -> Task:
        """The task that was asked for, or one of one's own data."""
        if self.data is not None:
            read = load_data(self.data, options=self.read)
            task = auto_host(read, name=self.data.resolve().stem, batch_size=self.batch_size)
        else:
            task = get_task(self.task)
            if self.batch_size is not None:
                task.batch_size = self.batch_size
        return task if self.host == "auto" else Rehosted(task, self.host, self.slot)

    def _run(self, directory: Path, console: Console, *, resumed: bool) -> None:
        self.check()
        task = self.build_task()
        for label, what in facts(task, self.width, self.depth).items():
            console.print(f"  {label}: {what}", highlight=False, markup=False, soft_wrap=True)
        run = GrowRun(self, task)
        if resumed:
            run.load(directory)
            console.print(f"Going on after epoch {run.epochs_done} of {self.epochs}.")
        board = TensorBoard(directory, first_step=run.epochs_done + 1 if resumed else None)
        tracking = Tracking(self.track, directory.resolve().name, asdict(self), board)
        with ExitStack() as stack:
            stack.callback(tracking.finish)
            try:
                self._train(run, directory, console, tracking)
            except KeyboardInterrupt:
                console.print(_what_is_kept(directory, run.epochs_done, self.epochs), soft_wrap=True)
                raise
            self._write(run, directory, console, tracking)

    def _train(self, run: GrowRun, directory: Path, console: Console, tracking: Tracking) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet) as progress:
            bar = progress.add_task("growing", total=self.epochs, completed=run.epochs_done)
            while run.epochs_done < self.epochs:
                step = run.epoch()
                tracking.log(step_row(step) | run.host_alone_row(), step.decision)
                run.save(directory)
                score = told(step.score, run.measure)
                if not step.decided.startswith(("WAIT", "no decision")):
                    because = f": {step.reason}" if step.reason else ""
                    progress.console.print(f"epoch {step.decision}: validation {score}, {step.decided}{because}")
                progress.update(bar, advance=1, description=f"growing: validation {score}")

    def _write(self, run: GrowRun, directory: Path, console: Console, tracking: Tracking) -> None:
        splits = run.splits
        grown = run.growth.grown_model().eval()
        with torch.no_grad():
            output = grown(splits.test_x)
        test = float(run.task.score(output, splits.test_y))
        result = run.result()
        tracking.log(verdict_row(result) | {"test_score": test}, run.epochs_done)
        console.print(summary(result))
        if result.control is None and result.added_params:
            console.print("With --control the host alone is trained beside it, which tells what growing has brought.")
        on_test = run.on_test(output, test)
        if result.control is not None:
            on_test["Host alone on test data"] = result.told(result.control.test_score)
        for label, words in on_test.items():
            console.print(f"{label}: {words}", highlight=False, soft_wrap=True)
        rows = splits.rows or Rows(read=nn.Identity(), example=splits.train_x[:2].cpu())
        served = Served(rows, grown.cpu()).eval()
        with torch.no_grad():
            described = {"task": run.task.name, **manifest(rows, served(rows.example)), "test_score": test}
        inferred = facts(run.task, self.width, self.depth)
        found = {"test_score": test, "test": on_test, "data": inferred, "rows": rows.drawn, "growth": result.to_json()}
        for name, content in {RESULT: found, MANIFEST: described}.items():
            write_json_atomic(directory / name, content)
        growth_figure(result.figure_record(), directory / "growth.png")
        export_model(served, rows.example, directory / f"grown.{self.export}", described)
        (directory / CHECKPOINT).unlink()
        console.print("Written:")
        for name in (RESULT, "growth.png", MANIFEST, f"grown.{self.export}"):
            console.print(f"  {directory / name}", soft_wrap=True)
        console.print(f"`esper report {directory}` makes a page of it.", soft_wrap=True)


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
        "host": f"{parameters:,} parameters, slots {', '.join(task.slots) or 'as proposed'} (--host, --width, --depth)",
    }


def _what_is_kept(directory: Path, done: int, epochs: int) -> str:
    if not (directory / CHECKPOINT).exists():
        return "Stopped before the end of the first epoch: nothing has been kept."
    return f"Stopped after epoch {done} of {epochs}. All is kept: `esper grow --resume {directory}` goes on."
