"""Experiment trackers: what is logged goes to TensorBoard and, by their own clients, to W&B, MLflow or Trackio.

What is tracked is what the run's own files hold: every row, of numbers and of short texts, and the options as
configuration. Where it goes is the client's business and set as its users know it (``WANDB_MODE=offline``,
``MLFLOW_TRACKING_URI``, …).
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter


class Tracker(Protocol):
    """Where rows go."""

    def log(self, row: Mapping[str, float | str], step: int) -> None:
        """Take one row of finite numbers and of texts.

        Args:
            row: Name → value.
            step: Number of the update, epoch or step that they belong to; it never falls from call to call.
        """

    def finish(self) -> None:
        """No row will follow."""


class TensorBoard:
    """Event files, from the first row on.

    Args:
        directory: Where they are written.
        first_step: What earlier files say of this step and of later ones is void.
    """

    def __init__(self, directory: str | os.PathLike[str], first_step: int | None = None) -> None:
        self._directory, self._first_step = os.fspath(directory), first_step
        self._writer: SummaryWriter | None = None

    def log(self, row: Mapping[str, float | str], step: int) -> None:
        """A scalar for each number, a text for each text."""
        if self._writer is None:
            self._writer = SummaryWriter(self._directory, purge_step=self._first_step)
        for name, value in row.items():
            (self._writer.add_text if isinstance(value, str) else self._writer.add_scalar)(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class _LogAndFinish:
    """A client of the shape of W&B's: ``log(row, step=...)`` and ``finish()``."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, row: Mapping[str, float | str], step: int) -> None:
        self._run.log(dict(row), step=step)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, mlflow: ModuleType) -> None:
        self._mlflow = mlflow

    def log(self, row: Mapping[str, float | str], step: int) -> None:
        self._mlflow.log_metrics({name: value for name, value in row.items() if not isinstance(value, str)}, step=step)
        for name, value in row.items():
            if isinstance(value, str):  # texts are not metrics there, but files
                self._mlflow.log_text(value, f"{name}/{step}.txt")

    def finish(self) -> None:
        self._mlflow.end_run()


def _wandb(wandb: ModuleType, name: str, config: dict[str, Any]) -> Tracker:
    return _LogAndFinish(wandb.init(project=PROJECT, name=name, config=config))


def _trackio(trackio: ModuleType, name: str, config: dict[str, Any]) -> Tracker:
    return _LogAndFinish(trackio.init(project=PROJECT, name=name, config=config))


def _mlflow(mlflow: ModuleType, name: str, config: dict[str, Any]) -> Tracker:
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=name)
    mlflow.log_params({key: str(value)[:500] for key, value in _flat(config).items()})
    return _MLflow(mlflow)


PROJECT = "esper"
"""Project, or experiment, under which runs appear."""

TRACKERS: dict[str, Callable[[ModuleType, str, dict[str, Any]], Tracker]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""Package → what begins a run with it, from the package, the run's name and its configuration."""


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise ValueError for a tracker that is not known, or whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"expected trackers out of {', '.join(TRACKERS)}, got '{name}'")
        _package(name)


class Tracking:
    """Several trackers as one; none is one, too.

    Args:
        names: Of :data:`TRACKERS`.
        run: What the run is called.
        config: Its options.
        trackers: Others, which have begun.

    Raises:
        ValueError: As :func:`check_trackers` says, or where a client cannot begin.
    """

    def __init__(self, names: tuple[str, ...], run: str, config: Mapping[str, Any], *trackers: Tracker) -> None:
        check_trackers(names)
        self._trackers = [*trackers, *(_begin(name, run, dict(config)) for name in names)]

    def log(self, row: Mapping[str, float | str | None], step: int) -> None:
        """One row; a number that is not finite is left out."""
        known = {
            name: value
            for name, value in row.items()
            if isinstance(value, str) or (value is not None and math.isfinite(value))
        }
        for tracker in self._trackers:
            tracker.log(known, step)

    def finish(self) -> None:
        """No row will follow."""
        for tracker in self._trackers:
            tracker.finish()


def _begin(name: str, run: str, config: dict[str, Any]) -> Tracker:
    try:
        return TRACKERS[name](_package(name), run, config)
    except Exception as error:  # a client has exceptions of its own
        raise ValueError(f"--track {name}: its client could not begin, {type(error).__name__}: {error}") from error


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--track {name} needs its package: pip install {name}") from error


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
