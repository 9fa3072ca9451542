"""Experiment trackers: metrics go to TensorBoard and, by their own clients, to W&B, MLflow or Trackio.

What is tracked is what the run's own files hold: every row of metrics, and the options as configuration. Where it goes
is the client's business and set as its users know it (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``, …).
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
    """Where metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one row of finite numbers.

        Args:
            metrics: Name → value.
            step: Number of the update, epoch or step that they belong to; rises from call to call.
        """

    def finish(self) -> None:
        """No row will follow."""


class TensorBoard:
    """Event files.

    Args:
        directory: Where they are written.
        first_step: What earlier files say of this step and of later ones is void.
    """

    def __init__(self, directory: str | os.PathLike[str], first_step: int | None = None) -> None:
        self._writer = SummaryWriter(os.fspath(directory), purge_step=first_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One scalar for each."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        self._writer.close()


class _LogAndFinish:
    """A client of the shape of W&B's: ``log(metrics, step=...)`` and ``finish()``."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, mlflow: ModuleType) -> None:
        self._mlflow = mlflow

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

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
        ValueError: As :func:`check_trackers` says.
    """

    def __init__(self, names: tuple[str, ...], run: str, config: Mapping[str, Any], *trackers: Tracker) -> None:
        check_trackers(names)
        self._trackers = [*trackers, *(TRACKERS[name](_package(name), run, dict(config)) for name in names)]

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """One row; what is not a finite number is left out."""
        finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(finite, step)

    def finish(self) -> None:
        """No row will follow."""
        for tracker in self._trackers:
            tracker.finish()


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
