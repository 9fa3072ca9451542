"""From raw arrays to splits: drawing the splits, and standardising on training statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.model_selection import train_test_split
from torch import Tensor

from esper.tasks.task import Splits

SPLIT_SEED = 0
"""Fixes which samples go into which split."""


def draw_split(y: np.ndarray, size: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) of a split with the same share of every class on both sides.

    Args:
        y: Classes ``[N]``.
        size: Number (int) or share (float) of samples to hold out.

    Raises:
        ValueError: When a class has too few samples to be on both sides.
    """
    classes, counts = np.unique(y, return_counts=True)
    held = round(size * len(y)) if isinstance(size, float) else size
    if counts.min() < 2 or not len(classes) <= held <= len(y) - len(classes):
        raise ValueError(
            f"{len(y)} samples of {len(classes)} classes, {counts.min()} of the rarest, are too few to hold out "
            f"{held} with every class on both sides; give more data, leave rare classes out, or give all splits"
        )
    kept, held_out = train_test_split(np.arange(len(y)), test_size=held, stratify=y, random_state=SPLIT_SEED)
    return kept, held_out


def split_in_three(x: np.ndarray, y: np.ndarray, val: int | float, test: int | float) -> Splits:
    """Standardised splits of one set; ``val`` and ``test`` are numbers or shares of all samples."""
    rest, test_rows = draw_split(y, test)
    kept, held_out = draw_split(y[rest], round(val * len(y)) if isinstance(val, float) else val)
    train_rows, val_rows = rest[kept], rest[held_out]
    return make_splits(x[train_rows], y[train_rows], x[val_rows], y[val_rows], x[test_rows], y[test_rows])


def make_splits(
    train_x: ArrayLike, train_y: ArrayLike, val_x: ArrayLike, val_y: ArrayLike, test_x: ArrayLike, test_y: ArrayLike
) -> Splits:
    """Splits of float inputs, standardised: each channel has mean 0 and variance 1 over the training split.

    Channels are the features of vectors ``[N, C]`` and of sequences ``[N, L, C]``, and the colours of images
    ``[N, C, H, W]``. A constant channel becomes 0.
    """
    xs = [torch.as_tensor(np.asarray(x, dtype=np.float32)) for x in (train_x, val_x, test_x)]
    ys = [torch.as_tensor(np.asarray(y, dtype=np.int64)) for y in (train_y, val_y, test_y)]
    mean, std = _channel_statistics(xs[0])
    xs = [(x - mean) / std for x in xs]
    return Splits(xs[0], ys[0], xs[1], ys[1], xs[2], ys[2])


def _channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over everything but the channels, in a shape that broadcasts against ``x``."""
    axes = [0, 2, 3] if x.ndim == 4 else list(range(x.ndim - 1))
    mean = x.double().mean(axes, keepdim=True)
    std = x.double().std(axes, correction=0, keepdim=True)
    return mean.float(), torch.where(std > 0, std, 1.0).float()
