"""One network growing on a task, as ``esper grow`` trains it: epoch by epoch, saved after each."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from esper.files import write_json_atomic, written_whole
from esper.growth import Growth, GrowthResult
from esper.growth.evaluate import random_state_kept
from esper.growth.tally import count_compute
from esper.growth.verdict import Control, paired_error
from esper.record import told
from esper.tasks import SCHEDULES, Splits, Task
from esper.tasks.reading import Rescale

if TYPE_CHECKING:
    from esper.commands.grow import GrowCommand

CONTRIBUTION_SAMPLES = 512
"""Validation samples on which contributions are measured."""

OPTIONS = "command.json"
"""The file of a run's options, from which it is resumed."""

CHECKPOINT = "checkpoint.pt"
"""The file of a run's state after its last epoch; gone once the run is done."""


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


def _checksum(splits: Splits) -> int:
    """Tells data apart."""
    checksum = 0
    for tensor in (splits.train_x, splits.train_y, splits.val_x, splits.val_y):
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), checksum)
    return checksum
