"""What a task is: data in three splits, a default host with slots, and the length of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.extensions import Registry
from esper.tasks.reading import Rows


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test data, checked on creation.

    Inputs are float32 (vector ``[N, C]``, sequence ``[N, L, C]``, image ``[N, C, H, W]``) or int64 tokens ``[N, L]``;
    targets are int64 classes, ``[N]``, or one for each token, ``[N, L]``, or float32 values, ``[N]``.

    Raises:
        ValueError: For inputs that are empty or not finite, targets that do not belong to them, fewer than two
            classes, or a class that the training split lacks.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    rows: Rows | None = None
    """How a model reads the rows that the inputs were made of; ``None`` if they are the inputs."""

    def __post_init__(self) -> None:
        for split in ("train", "val", "test"):
            _check_split(split, getattr(self, f"{split}_x"), getattr(self, f"{split}_y"), self.train_x)
        if self.train_y.is_floating_point():
            return
        seen = set(self.train_y.unique().tolist())
        if len(seen) < 2:
            raise ValueError(
                f"the training targets hold {len(seen)} class ({', '.join(map(str, sorted(seen)))}); a task needs "
                "two or more: add samples of another class, or check which array holds the targets"
            )
        for split in ("val", "test"):
            unseen = sorted(set(getattr(self, f"{split}_y").unique().tolist()) - seen)
            if unseen:
                raise ValueError(
                    f"the {split} targets hold {len(unseen)} class(es) that the training targets lack, such as "
                    f"{unseen[0]}; move samples of them into the training split, or leave them out"
                )

    @property
    def num_classes(self) -> int:
        """Size of a prediction: the highest target plus one; 1 for values."""
        if self.train_y.is_floating_point():
            return 1
        return int(self.train_y.max()) + 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of training, validation and test samples."""
        return len(self.train_x), len(self.val_x), len(self.test_x)

    def to(self, device: torch.device | str) -> Splits:
        """The same data on ``device``."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "rows"}
        return Splits(**tensors, rows=self.rows)


def _check_split(split: str, x: Tensor, y: Tensor, train_x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.int64) or y.dtype not in (torch.int64, torch.float32):
        raise ValueError(
            f"{split} data: expected float32 inputs (or int64 tokens) and int64 targets (or float32 values), got "
            f"{x.dtype} and {y.dtype}; convert them with .float() and .long()"
        )
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"{split} data: expected as many targets as inputs, at least one, got {len(x)} inputs and {len(y)} targets"
        )
    if x.shape[1:] != train_x.shape[1:]:
        raise ValueError(
            f"{split} inputs have the shape {list(x.shape[1:])}, training inputs {list(train_x.shape[1:])}; all splits "
            "must be of one shape"
        )
    check_finite(f"{split} inputs", x)
    if y.is_floating_point():
        check_finite(f"{split} targets", y[:, None])
    elif int(y.min()) < 0:
        raise ValueError(f"{split} targets: expected classes 0, 1, 2, …, got {int(y.min())}; number the classes from 0")


def check_finite(what: str, x: Tensor) -> None:
    """Raise ValueError when a sample ``x[i]`` holds NaN or infinity; ``what`` names the data in the message."""
    bad = ~torch.isfinite(x).flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"{what}: expected finite numbers, got NaN or infinity in {int(bad.sum())} of {len(x)} samples (the "
            f"first is sample {int(bad.nonzero()[0])}); drop those samples, or fill the gaps, before loading"
        )


class Task(ABC):
    """Data and a host: what grows, on what, and for how long.

    A subclass names itself, loads its data and builds its host; everything else has a default. Decorate it with
    :func:`register_task` and it can be used by name, from Python and from the command line.

    Example:
        >>> from collections import OrderedDict
        >>> class Parity(Task):
        ...     name = "parity"
        ...     description = "parity of three bits"
        ...     slots = ("hidden",)
        ...     batch_size = 8
        ...
        ...     def load(self):
        ...         x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        ...         y = x.sum(1).long() % 2
        ...         return Splits(x, y, x, y, x, y)
        ...
        ...     def build_host(self, width=1.0, depth=1):
        ...         hidden = nn.Sequential(nn.Linear(3, round(8 * width)), nn.ReLU())
        ...         head = nn.Linear(round(8 * width), 2)
        ...         return nn.Sequential(OrderedDict(hidden=hidden, head=head))
        >>> Parity().chance_score
        0.5
    """

    name: str
    description: str
    """One line: what the data are."""
    reference: str = ""
    """Published scores on these data, with their source; empty when there are none."""

    slots: tuple[str, ...]
    """Names of the host's submodules whose outputs are slots, in the order of execution."""
    horizon: int = 24
    """Length of a run, in decisions."""
    steps_per_decision: int = 16
    """Training batches between two decisions."""
    batch_size: int = 64
    """Samples in a training batch."""
    learning_rate: float = 5e-3
    """Of Adam, for host and seeds."""
    schedule: str = "constant"
    """How the learning rate moves over a run, by name (:data:`esper.tasks.schedules.SCHEDULES`)."""
    causal: bool = False
    """Whether a position of a sequence may see only itself and those before it."""
    phases: int = 1
    """Equal stretches of the training split that a run sees one after the other; 1 for all of it all the time."""
    held_out: bool = False
    """Whether the task is kept for the end: no policy that ships is trained or chosen on it."""

    @abstractmethod
    def load(self) -> Splits:
        """Read or make the data; :meth:`splits` calls this once."""

    @abstractmethod
    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An untrained host, its weights drawn from the global random state.

        Args:
            width: Factor on the number of channels.
            depth: Layers in each block; slots stay where they are.
        """

    def splits(self) -> Splits:
        """The data, the same at every call.

        Raises:
            ValueError: When the training split is smaller than one batch.
        """
        return self._splits

    @cached_property
    def _splits(self) -> Splits:
        splits = self.load()
        if len(splits.train_x) < self.batch_size:
            raise ValueError(
                f"task '{self.name}' has {len(splits.train_x)} training samples, fewer than one batch of "
                f"{self.batch_size}; give more data or a smaller batch_size"
            )
        return splits

    def stretch(self, progress: float) -> range:
        """Training samples that a run sees at ``progress`` in [0, 1) of its length: those of one phase."""
        total, phase = len(self.splits().train_x), int(progress * self.phases)
        return range(total * phase // self.phases, total * (phase + 1) // self.phases)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of logits ``[..., classes]`` against classes ``[...]``; a scalar, in nats."""
        return F.cross_entropy(output.flatten(0, -2), target.flatten())

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Share of right answers, a scalar in [0, 1]."""
        return (output.argmax(-1) == target).float().mean()

    @cached_property
    def chance_score(self) -> float:
        """Score of always answering the most frequent class of the training targets."""
        counts = self.splits().train_y.flatten().bincount()
        return float(counts.max() / counts.sum())


TASKS: Registry[type[Task]] = Registry("tasks")
"""The tasks that can be asked for by name."""


def register_task(task: type[Task]) -> type[Task]:
    """Class decorator: make a task available under its name.

    Raises:
        ValueError: When the class lacks a name, a description or slots, or the name is taken.
    """
    missing = [field for field in ("name", "description", "slots") if not getattr(task, field, None)]
    if missing:
        raise ValueError(f"task class {task.__name__} must set {', '.join(missing)}")
    TASKS.register(task.name, task)
    return task


def unknown_task(name: str) -> ValueError:
    """The error for a name that is not registered, with the names that come nearest."""
    return TASKS.unknown(name, "give the path of your own data, as `esper grow --help` lists them")
