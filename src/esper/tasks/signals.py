"""MNIST-1D: ten noisy, shifted, sheared one-dimensional templates, made on the spot by the ``mnist1d`` package."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from mnist1d.data import make_dataset
from torch import nn

from esper.tasks.hosts import BLOCKS, scaled, sequence_host
from esper.tasks.prepare import draw_split, make_splits
from esper.tasks.task import Splits, Task, register_task

LENGTH = 40
"""Positions in a signal."""
_SEGMENTS = 8
_VALIDATION_SAMPLES = 800
_SHUFFLE_SEED = 42


@register_task
class MNIST1D(Task):
    """Sequences of 40 numbers, 10 classes: 3,200 training, 800 validation, 1,000 test samples.

    Where a pattern lies says nothing of its class; neighbours say everything. The default host sees no neighbours.
    """

    name = "mnist1d"
    description = "one-dimensional digits, 40 positions, 10 classes (mnist1d)"
    reference = (
        "logistic 32 %, MLP 68 %, GRU 91 %, CNN 94 %, human 96 % (Greydanus and Kobak 2024, 4,000 training samples)"
    )
    slots = BLOCKS

    def load(self) -> Splits:
        """The package's default data set, with 800 of its training samples held out for validation."""
        return _splits(np.arange(LENGTH))

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """Three pointwise blocks of 16 channels; the head reads the means of 8 stretches of 5 positions."""
        return sequence_host(1, _SEGMENTS, 10, scaled(16, width), depth)


@register_task
class ShuffledMNIST1D(MNIST1D):
    """MNIST-1D with the positions shuffled by one fixed permutation: neighbours mean nothing.

    The control for :class:`MNIST1D`, with the same samples in the same splits: convolution should not pay here.
    """

    name = "mnist1d_shuffled"
    description = "mnist1d with its positions shuffled by one fixed permutation (control)"
    reference = "logistic 32 %, MLP 68 %, CNN 56 %, GRU 57 % (Greydanus and Kobak 2024, 4,000 training samples)"

    def load(self) -> Splits:
        """The data of :class:`MNIST1D` with shuffled positions."""
        return _splits(np.random.default_rng(_SHUFFLE_SEED).permutation(LENGTH))


def _splits(order: np.ndarray) -> Splits:
    data = _dataset()
    x, test_x = (data[key][:, order, None] for key in ("x", "x_test"))
    y = data["y"]
    kept, held_out = draw_split(y, _VALIDATION_SAMPLES)
    return make_splits(x[kept], y[kept], x[held_out], y[held_out], test_x, data["y_test"])


@cache
def _dataset() -> dict[str, Any]:
    with _global_random_state_kept():
        return make_dataset()


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """``make_dataset`` seeds the global generators of Python and NumPy; leave them as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
