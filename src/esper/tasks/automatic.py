"""A task for data that bring no host of their own."""

from __future__ import annotations

from torch import nn

from esper.tasks.hosts import BLOCKS, image_host, scaled, sequence_host, vector_host
from esper.tasks.task import Splits, Task

_CHANNELS = 16
_MOST_SEGMENTS = 8
_IMAGE_SIDE = 8


class AutomaticTask(Task):
    """Given data with a small host chosen from their form.

    Vectors ``[N, C]`` get an MLP, sequences ``[N, L, C]`` a pointwise network, images ``[N, C, H, W]`` a small
    convolutional network that works at about 8×8; each of 16 channels and with three slots.
    """

    slots = BLOCKS
    learning_rate = 3e-3

    def __init__(self, splits: Splits, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self._given = splits
        form = " × ".join(map(str, splits.train_x.shape[1:]))
        self.description = f"your own data, {form}, {splits.num_classes} classes"

    def load(self) -> Splits:
        """The data that were given."""
        return self._given

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """The host that fits the form of the data."""
        shape, classes = self._given.train_x.shape[1:], self._given.num_classes
        channels = scaled(_CHANNELS, width)
        if len(shape) == 1:
            return vector_host(shape[0], classes, channels, depth)
        if len(shape) == 2:
            segments = max(n for n in range(1, _MOST_SEGMENTS + 1) if shape[0] % n == 0)
            return sequence_host(shape[1], segments, classes, channels, depth)
        stride = max(1, min(shape[1:]) // _IMAGE_SIDE)
        return image_host(shape[0], classes, channels, stride, kernel=3, depth=depth)


def auto_host(splits: Splits, *, name: str = "custom", batch_size: int = 64) -> Task:
    """A task from data alone, with a small host that has three slots.

    Args:
        splits: The data, for instance from :func:`esper.tasks.load_data`.
        name: What the task is called in logs and reports.
        batch_size: Samples in a training batch.

    Raises:
        ValueError: For inputs of another form than vectors, sequences or images, or fewer samples than a batch.
    """
    if splits.train_x.ndim not in (2, 3, 4) or not splits.train_x.is_floating_point():
        raise ValueError(
            f"auto_host knows float vectors [N, C], sequences [N, L, C] and images [N, C, H, W], got "
            f"{splits.train_x.dtype} inputs of shape {list(splits.train_x.shape)}; write a Task with a host of its own"
        )
    task = AutomaticTask(splits, name, batch_size)
    task.splits()
    return task
