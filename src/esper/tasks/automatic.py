"""A task for data that bring no host of their own."""

from __future__ import annotations

from functools import cached_property

import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.hosts import BLOCKS, image_host, scaled, sequence_host, token_host, vector_host
from esper.tasks.task import Splits, Task

_CHANNELS = 16
_MOST_SEGMENTS = 8
_IMAGE_SIDE = 8
_MOST_BATCH = 64
_LEAST_BATCH = 4
_BATCHES = 8


class AutomaticTask(Task):
    """Given data with a small host chosen from their form.

    Vectors ``[N, C]`` get an MLP, sequences ``[N, L, C]`` a pointwise network, images ``[N, C, H, W]`` a small
    convolutional network that works at about 8×8, tokens ``[N, L]`` a network that answers at every position; each of
    16 channels and with three slots.
    """

    slots = BLOCKS
    learning_rate = 3e-3

    def __init__(self, splits: Splits, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self._given = splits
        self.causal = not splits.train_x.is_floating_point()
        form = " × ".join(map(str, splits.train_x.shape[1:]))
        answers = "values" if splits.train_y.is_floating_point() else f"{splits.num_classes} classes"
        self.description = f"your own data, {form}, {answers}"

    def load(self) -> Splits:
        """The data that were given."""
        return self._given

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """The host that fits the form of the data."""
        shape, outputs = self._given.train_x.shape[1:], self._given.num_classes
        channels = scaled(_CHANNELS, width)
        if self.causal:
            return token_host(outputs, channels, depth)
        if len(shape) == 1:
            return vector_host(shape[0], outputs, channels, depth)
        if len(shape) == 2:
            segments = max(n for n in range(1, _MOST_SEGMENTS + 1) if shape[0] % n == 0)
            return sequence_host(shape[1], segments, outputs, channels, depth)
        stride = max(1, min(shape[1:]) // _IMAGE_SIDE)
        return image_host(shape[0], outputs, channels, stride, kernel=3, depth=depth)


class ValuesTask(AutomaticTask):
    """Values to predict in place of classes: outputs ``[N, 1]``, targets ``[N]``."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error, a scalar."""
        return F.mse_loss(output.squeeze(-1), target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """R², the share of the training mean's squared error that is gone: a scalar of at most 1, below 0 if worse."""
        constant = (target - self.splits().train_y.mean()).square().mean()
        return 1 - self.loss(output, target) / constant

    @cached_property
    def chance_score(self) -> float:
        """Score of always answering the training mean."""
        return 0.0


def auto_host(splits: Splits, *, name: str = "custom", batch_size: int | None = None) -> Task:
    """A task from data alone, with a small host that has three slots.

    Args:
        splits: The data, for instance from :func:`esper.tasks.load_data`.
        name: What the task is called in logs and reports.
        batch_size: Samples in a training batch; by default an eighth of the training samples, from 4 to 64.

    Raises:
        ValueError: For inputs of another form than vectors, sequences, images or tokens with a target each, or fewer
            samples than a batch.
    """
    x, y = splits.train_x, splits.train_y
    is_text = not x.is_floating_point() and x.ndim == 2 and y.shape == x.shape
    if not is_text and (x.ndim not in (2, 3, 4) or not x.is_floating_point()):
        raise ValueError(
            f"auto_host knows float vectors [N, C], sequences [N, L, C] and images [N, C, H, W], and tokens [N, L] "
            f"with a target each, got {x.dtype} inputs of shape {list(x.shape)}; write a Task with a host of its own"
        )
    if batch_size is None:
        batch_size = min(len(x), max(_LEAST_BATCH, min(_MOST_BATCH, len(x) // _BATCHES)))
    task = (ValuesTask if y.is_floating_point() else AutomaticTask)(splits, name, batch_size)
    task.splits()
    return task
