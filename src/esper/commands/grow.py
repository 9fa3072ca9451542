"""``esper grow``: grow one network, on a task or on one's own data, and take it away."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
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

from esper.figure import growth_figure
from esper.files import from_plain, read_json, write_json_atomic, written_whole
from esper.growth import Growth, GrowthResult
from esper.growth.evaluate import random_state_kept
from esper.growth.export import export_model
from esper.growth.log import step_row, verdict_row
from esper.growth.summary import summary
from esper.growth.tally import count_compute
from esper.growth.verdict import Control, paired_error
from esper.programs import MANIFEST, check_packages
from esper.record import told
from esper.tasks import SCHEDULES, DataOptions, Rehosted, Splits, Task, auto_host, get_task, load_data
from esper.tasks.reading import Rescale, Rows, Served, manifest
from esper.tracking import TensorBoard, Tracking, check_trackers

CONTRIBUTION_SAMPLES = 512
"""Validation samples on which contributions are measured."""

OPTIONS = "command.json"
"""The file of a run's options, from which it is resumed."""

RESULT = "growth.json"
"""The file of what came of it."""

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
    """Directory of a run to go on with; all other options are then read from it."""
    export: Literal["pt2", "onnx"] = "pt2"
    """Format of the exported model."""
    control: bool = False
    """Train the host alone beside it, on the same batches, to tell whether growing was worth it; takes its compute once
    more, and changes nothing about the growth."""
    track: tuple[str, ...] = ()
    """Trackers that every step is logged to, beside TensorBoard: `wandb`, `mlflow`, `trackio`."""
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
            task.batch_size = self.batch_size or task.batch_size
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
        rate = options.learning_rate or task.learning_rate
        self.control = HostAlone(self.model, rate, options) if options.control else None
        self.optimizer, self.scheduler = _trainer(self.model, rate, options)
        self.growth = Growth(
            self.model,
            self.optimizer,
            slots=task.slots or "auto",
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
        order = draw_order(self.task, self.splits, self.epochs_done / self.options.epochs)
        train_loss = train_one_epoch(self.task, self.model, self.optimizer, self.splits, order)
        self.scheduler.step()
        step = self.growth.step(self.evaluate, train_loss)
        if self.control is not None:
            self.control.epoch(self.task, self.splits, order)
        self.epochs_done += 1
        return step

    def host_alone_row(self) -> dict[str, float | str]:
        """The host's own score after the latest epoch, for trackers, where it is trained."""
        return {} if self.control is None else {"host_alone_score": self.control.scores[-1]}

    @property
    def measure(self) -> str:
        """What the score is."""
        return "R²" if self.splits.train_y.is_floating_point() else "accuracy"

    def result(self) -> GrowthResult:
        """All that is to be told of it, once it is done; touches test data for the host alone, if it was trained."""
        result = replace(self.growth.result(), task=self.task.name, policy=self.options.policy, measure=self.measure)
        batch, samples = self.task.batch_size, min(CONTRIBUTION_SAMPLES, len(self.splits.val_x))
        train = len(self.task.stretch(0)) // batch * batch
        compute = count_compute(result, self.growth.network, train=train, measured=samples)
        return replace(result, compute=compute, control=self._compared())

    @torch.no_grad()
    def _compared(self) -> Control | None:
        if self.control is None:
            return None
        score, splits, alone = self.task.score, self.splits, self.control.model.eval()
        grown, other = self.growth.grown_model().eval()(splits.val_x), alone(splits.val_x)
        return Control(
            scores=self.control.scores,
            difference=self.growth.history[-1].score - self.control.scores[-1],
            error=paired_error(score, grown, other, splits.val_y),
            test_score=float(score(alone(splits.test_x), splits.test_y)),
        )

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
            "control": None if self.control is None else self.control.state_dict(),
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
        if self.control is not None:
            self.control.load_state_dict(state["control"])
        self.epochs_done = state["epochs_done"]

    # ------------------------------------------------------------------ words

    def on_test(self, output: Tensor, score: float) -> dict[str, str]:
        """The score on test data, and how far it can be trusted: what it is → how it is told."""
        y = self.splits.test_y
        if y.is_floating_point():
            error = float((output.squeeze(-1) - y).square().mean().sqrt())
            answer = self.splits.rows.answer if self.splits.rows else None
            unit = float(answer.std) if isinstance(answer, Rescale) else 1.0
            words = f"{told(score, self.measure)}, root mean square error {error * unit:.4g} ({len(y):,} samples)"
            return {"Test": words}
        low, high = binomtest(round(score * y.numel()), y.numel()).proportion_ci(method="wilson")
        return {"Test accuracy": f"{told(score)} ({y.numel():,} answers, 95 % interval {low:.1%} to {high:.1%})"}


class HostAlone:
    """The host without growth, trained beside the growing one on the same batches.

    It draws from a random state of its own, so that the growing one draws what it would have drawn without it.

    Args:
        model: The host, before anything has grown; it is copied.
        rate: Learning rate at its highest.
        options: How it is trained.
    """

    def __init__(self, model: nn.Module, rate: float, options: GrowCommand) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer, self.scheduler = _trainer(self.model, rate, options)
        self.scores: list[float] = []
        """On validation data, after each epoch."""
        self._random = torch.get_rng_state()

    def epoch(self, task: Task, splits: Splits, order: Tensor) -> None:
        """Train for one epoch, in this order, and evaluate."""
        with random_state_kept(self.model):
            torch.set_rng_state(self._random)
            train_one_epoch(task, self.model, self.optimizer, splits, order)
            self._random = torch.get_rng_state()
        self.scheduler.step()
        with torch.no_grad():
            self.scores.append(float(task.score(self.model.eval()(splits.val_x), splits.val_y)))

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scores": list(self.scores),
            "random": self._random,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scores, self._random = list(state["scores"]), state["random"].cpu()


def _trainer(model: nn.Module, rate: float, options: GrowCommand) -> tuple[torch.optim.Adam, LambdaLR]:
    optimizer, schedule = torch.optim.Adam(model.parameters(), lr=rate), SCHEDULES[options.schedule]
    return optimizer, LambdaLR(optimizer, lambda done: schedule(done, options.epochs))


def train_one_epoch(
    task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, splits: Splits, order: Tensor
) -> float:
    """One pass over training data in this order, in whole batches; the mean training loss."""
    model.train()
    losses = []
    for chosen in order[: len(order) // task.batch_size * task.batch_size].split(task.batch_size):
        optimizer.zero_grad()
        loss = task.loss(model(splits.train_x[chosen]), splits.train_y[chosen])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def draw_order(task: Task, splits: Splits, progress: float) -> Tensor:
    """The training samples that are seen at ``progress`` in [0, 1) of a run, in a new order."""
    stretch = task.stretch(progress)
    return (stretch.start + torch.randperm(len(stretch))).to(splits.train_x.device)


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


def _checksum(splits: Splits) -> int:
    """Tells data apart."""
    checksum = 0
    for tensor in (splits.train_x, splits.train_y, splits.val_x, splits.val_y):
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), checksum)
    return checksum
