"""A host of the user's own, for data of their own or for those of a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from esper.extensions import Registry, look_up
from esper.modes import modes_kept
from esper.tasks.task import Splits, Task

HostBuilder = Callable[..., nn.Module]
"""From two inputs as batches hold them, and the number of outputs, to an untrained host."""

AnyBuilder = TypeVar("AnyBuilder", bound=HostBuilder)

HOSTS: Registry[HostBuilder] = Registry("hosts")
"""The hosts that can be asked for by name."""


def register_host(builder: AnyBuilder) -> AnyBuilder:
    """Decorator: make a function that builds a host available under its name, for ``esper grow --host NAME``.

    Args:
        builder: Called with two training inputs ``[2, ...]`` and the number of outputs (classes, or 1 for values);
            returns an untrained module from inputs to outputs ``[N, outputs]``, for tokens ``[N, L, outputs]``. If it
            has parameters ``width`` and ``depth``, the options of these names go there.

    Raises:
        ValueError: When the name is taken.

    Example:
        >>> from torch import nn
        >>> @register_host
        ... def two_layers(x, outputs, width=1.0):
        ...     hidden = round(16 * width)
        ...     return nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        >>> del HOSTS["two_layers"]
    """
    if not callable(builder):
        raise TypeError(f"expected a function from inputs and number of outputs to a module, got {builder!r}")
    HOSTS.register(getattr(builder, "__name__", type(builder).__name__), builder)
    return builder


class Rehosted(Task):
    """A task with another host; all else is as it was.

    Args:
        task: Data, loss, score and length of a run.
        host: Name of a registered host, or ``module:name`` of a function that builds one (:func:`register_host`).
        slots: Names of the submodules whose outputs are slots; none to have them proposed.

    Raises:
        ValueError: For a host that is not there, or does not fit the data.
    """

    def __init__(self, task: Task, host: str, slots: Sequence[str] = ()) -> None:
        self._task = task
        self._host = host
        self._builder = _find(host)
        self.slots = tuple(slots)
        self.name, self.description, self.reference = task.name, task.description, task.reference
        self.horizon, self.steps_per_decision = task.horizon, task.steps_per_decision
        self.batch_size, self.learning_rate, self.schedule = task.batch_size, task.learning_rate, task.schedule
        self.causal, self.phases, self.held_out = task.causal, task.phases, task.held_out

    def load(self) -> Splits:
        """The data of the task."""
        return self._task.splits()

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """What the user's function builds, tried on two inputs.

        Raises:
            ValueError: For a width or depth that the function does not take, or for what does not fit the data.
        """
        splits = self.splits()
        x, outputs = splits.train_x[:2], splits.num_classes
        known = inspect.signature(self._builder).parameters
        options = {}
        for name, value, usual in (("width", width, 1.0), ("depth", depth, 1)):
            if name in known:
                options[name] = value
            elif value != usual:
                raise ValueError(f"host '{self._host}' has no parameter '{name}', got {name}={value}")
        host = self._builder(x, outputs, **options)
        if not isinstance(host, nn.Module):
            raise ValueError(f"host '{self._host}': expected a torch.nn.Module, got {type(host).__name__}")
        self._check_output(host, x, [*splits.train_y[:2].shape, outputs])
        return host

    def _check_output(self, host: nn.Module, x: Tensor, expected: list[int]) -> None:
        try:
            with torch.no_grad(), modes_kept(host):
                output = host.eval()(x)
        except Exception as error:
            raise ValueError(
                f"host '{self._host}' failed on two inputs, {list(x.shape)} {x.dtype}: {type(error).__name__}: {error}"
            ) from error
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != expected:
            raise ValueError(
                f"host '{self._host}': expected outputs {expected} for inputs {list(x.shape)}, got {shape}; the second "
                "argument of the function is the number of outputs"
            )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """That of the task."""
        return self._task.loss(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """That of the task."""
        return self._task.score(output, target)

    @cached_property
    def chance_score(self) -> float:
        """That of the task."""
        return self._task.chance_score


def _find(host: str) -> HostBuilder:
    if host in HOSTS:
        return HOSTS[host]
    if ":" not in host:
        raise HOSTS.unknown(host, "give module:name of a function that builds one")
    builder = look_up(host)
    if not callable(builder):
        raise ValueError(f"'{host}': expected a function that builds a host, got {type(builder).__name__}")
    return builder
