"""Tables: small ones that ship with scikit-learn, larger ones that ship with Esper."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from torch import nn

from esper.tasks.hosts import BLOCKS, scaled, vector_host
from esper.tasks.larger_hosts import recurrent_network, token_convolutions, vector_network
from esper.tasks.prepare import draw_split, split_in_three
from esper.tasks.shipped import read_table
from esper.tasks.task import Splits, Task, register_task


@register_task
class BreastCancer(Task):
    """Diagnosis from 30 measurements of cell nuclei, 2 classes: 341 training, 114 validation, 114 test samples."""

    name = "breast_cancer"
    description = "diagnosis from 30 measurements of cell nuclei, 2 classes (scikit-learn)"
    reference = "one separating plane on 3 features 97.5 % (Street, Wolberg and Mangasarian 1993, cross-validation)"
    slots = BLOCKS
    batch_size = 32
    learning_rate = 1e-3

    def load(self) -> Splits:
        """The 569 samples of :func:`sklearn.datasets.load_breast_cancer`."""
        data = load_breast_cancer()
        return split_in_three(data.data, data.target, val=0.2, test=0.2)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An MLP of three blocks of 8 features."""
        return vector_host(30, 2, scaled(8, width), depth)


@register_task
class Wine(Task):
    """Origin of wines from 13 chemical measurements, 3 classes: 106 training, 36 validation, 36 test samples.

    So few validation samples make the score coarse: one sample is 2.8 points.
    """

    name = "wine"
    description = "origin of wines from 13 chemical measurements, 3 classes (scikit-learn)"
    reference = "nearest neighbour 96.1 %, LDA 98.9 %, RDA 100 % (Aeberhard and others 1992, leave-one-out)"
    slots = BLOCKS
    batch_size = 32
    learning_rate = 1e-3

    def load(self) -> Splits:
        """The 178 samples of :func:`sklearn.datasets.load_wine`."""
        data = load_wine()
        return split_in_three(data.data, data.target, val=0.2, test=0.2)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An MLP of three blocks of 4 features."""
        return vector_host(13, 3, scaled(4, width), depth)


@register_task
class Letter(Task):
    """Capital letters from 16 measurements of their image, 26 classes: 12,668 training, 2,000 validation, 4,000 test.

    Equal rows of the 20,000 are kept once.
    """

    name = "letter"
    description = "capital letters from 16 measurements of their image, 26 classes (UCI)"
    reference = "Holland-style classifiers a little over 80 % (Frey and Slate 1991, the last 4,000 rows)"
    slots = BLOCKS
    horizon = 20
    steps_per_decision = 60
    schedule = "cosine"
    batch_size = 128
    learning_rate = 2e-3

    def load(self) -> Splits:
        """The rows of the shipped table."""
        return _measurements("letter.csv", 16, val=2000, test=4000)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A residual MLP of three blocks of 64 features, normalised first."""
        return vector_network(16, 26, scaled(64, width), depth)


@register_task
class Satellite(Task):
    """Ground cover from 3×3 pixels of a satellite image, 6 classes: 4,435 training, 1,000 validation, 1,000 test."""

    name = "satellite"
    description = "ground cover from 3×3 pixels of a satellite image in 4 bands, 6 classes (UCI, Landsat)"
    slots = BLOCKS
    horizon = 20
    steps_per_decision = 40
    schedule = "cosine"
    learning_rate = 1e-3
    held_out = True

    def load(self) -> Splits:
        """The rows of the shipped table."""
        return _measurements("satimage.csv", 36, val=1000, test=1000)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A residual MLP of three blocks of 56 features, normalised first."""
        return vector_network(36, 6, scaled(56, width), depth)


@register_task
class PenDigits(Task):
    """Handwritten digits as 8 points along the pen's way, 10 classes: 7,992 training, 1,000 validation, 2,000 test."""

    name = "pen_digits"
    description = "handwritten digits as 8 points along the pen's way, 10 classes (UCI)"
    slots = BLOCKS
    horizon = 20
    steps_per_decision = 40
    schedule = "cosine"
    learning_rate = 1e-3

    def load(self) -> Splits:
        """The rows of the shipped table as sequences of points ``[N, 8, 2]``."""
        return _measurements("penbased.csv", 8, 2, val=1000, test=2000)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """Three residual GRU blocks of 40 channels, normalised first."""
        return recurrent_network(2, 10, scaled(40, width), depth)


@register_task
class Splice(Task):
    """Splice junctions in DNA, 60 bases, 3 classes: exon to intron, intron to exon, neither.

    2,005 training, 400 validation and 600 test sequences; equal sequences are kept once.
    """

    name = "splice"
    description = "splice junctions in DNA, 60 bases, 3 classes (UCI)"
    slots = BLOCKS
    horizon = 20
    steps_per_decision = 20
    schedule = "cosine"
    learning_rate = 1e-3
    held_out = True

    def load(self) -> Splits:
        """The rows of the shipped table as tokens ``[N, 60]``, the letters of the table in alphabetical order."""
        x, y = read_table("splice.csv")
        tokens, targets = torch.from_numpy(_numbered(x)), torch.from_numpy(_numbered(y))
        rest, test = draw_split(y, 600)
        kept, held_out = draw_split(y[rest], 400)
        train, val = rest[kept], rest[held_out]
        return Splits(tokens[train], targets[train], tokens[val], targets[val], tokens[test], targets[test])

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """Three blocks of a convolution over 5 bases and an MLP, of 32 channels."""
        return token_convolutions(8, 12, 3, scaled(32, width), depth)


def _measurements(table: str, *shape: int, val: int, test: int) -> Splits:
    """The rows of a shipped table of numbers, each in this shape, with its classes numbered."""
    x, y = read_table(table)
    return split_in_three(x.astype(np.float32).reshape(-1, *shape), _numbered(y), val=val, test=test)


def _numbered(names: np.ndarray) -> np.ndarray:
    """Names as numbers, in alphabetical order; the same shape."""
    return np.searchsorted(np.unique(names), names)
