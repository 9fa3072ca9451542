"""Small tables that ship with scikit-learn."""

from __future__ import annotations

from sklearn.datasets import load_breast_cancer, load_wine
from torch import nn

from esper.tasks.hosts import BLOCKS, scaled, vector_host
from esper.tasks.prepare import split_in_three
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
