"""From raw arrays to splits: drawing the splits, and standardising on training statistics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.model_selection import train_test_split

from esper.tasks.reading import Rows, Standardise
from esper.tasks.task import Splits

SPLIT_SEED = 0
"""Fixes which samples go into which split."""


def draw_split(y: np.ndarray, size: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) of a split with the same share of every class on both sides.

    Where a class has too few samples for that, one of each class is kept and the others are drawn from all.

    Args:
        y: Classes ``[N]``; of values (floats) none has a share to keep.
        size: Number (int) or share (float) of samples to hold out.

    Raises:
        ValueError: When there are too few samples to hold out that many and keep one of every class.
    """
    places = np.arange(len(y))
    classes, first, counts = np.unique(y, return_index=True, return_counts=True)
    held = round(size * len(y)) if isinstance(size, float) else size
    is_values = y.dtype.kind == "f"
    if not is_values and counts.min() >= 2 and len(classes) <= held <= len(y) - len(classes):
        kept, held_out = train_test_split(places, test_size=held, stratify=y, random_state=SPLIT_SEED)
        return kept, held_out
    free = places[:-1] if is_values else np.setdiff1d(places, first)
    if not 1 <= held <= len(free):
        raise ValueError(
            f"{len(y)} samples{'' if is_values else f' of {len(classes)} classes'} are too few to hold out {held} and "
            "keep one of every class; give more data, leave rare classes out, or give all splits"
        )
    held_out = np.random.default_rng(SPLIT_SEED).choice(free, held, replace=False)
    return np.setdiff1d(places, held_out), held_out


def draw_three(y: np.ndarray, val: int | float, test: int | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices (training, validation, test); ``val`` and ``test`` are numbers or shares of all samples."""
    rest, test_rows = draw_split(y, test)
    kept, held_out = draw_split(y[rest], round(val * len(y)) if isinstance(val, float) else val)
    return rest[kept], rest[held_out], test_rows


def split_in_three(x: np.ndarray, y: np.ndarray, val: int | float, test: int | float) -> Splits:
    """Standardised splits of one set; ``val`` and ``test`` are numbers or shares of all samples."""
    train_rows, val_rows, test_rows = draw_three(y, val, test)
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
    rows = Rows(read=Standardise(xs[0]), example=xs[0][:2].clone())
    xs = [rows.read(x) for x in xs]
    return Splits(xs[0], ys[0], xs[1], ys[1], xs[2], ys[2], rows)
