"""Images that ship with scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from esper.tasks.hosts import BLOCKS, block_names, image_host, scaled, sequence_host
from esper.tasks.prepare import split_in_three
from esper.tasks.task import Splits, Task, register_task

_SIDE = 8
_SHUFFLE_SEED = 42


@register_task
class Digits(Task):
    """Handwritten digits, 8×8 grey images, 10 classes: 1,197 training, 300 validation, 300 test images."""

    name = "digits"
    description = "handwritten digits, 8×8 grey images, 10 classes (scikit-learn)"
    reference = "support vector machine 97 % (scikit-learn, 'Recognizing hand-written digits', another split)"
    slots = BLOCKS

    def load(self) -> Splits:
        """The 1,797 images of :func:`sklearn.datasets.load_digits`."""
        return _splits((1, _SIDE, _SIDE))

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A 3×3 convolution of stride 2 and three pointwise blocks at 4×4, of 8 channels."""
        return image_host(1, 10, scaled(8, width), stride=2, depth=depth)


@register_task
class ShuffledDigits(Digits):
    """Digits with the pixels shuffled by one fixed permutation: neighbours mean nothing.

    The control for :class:`Digits`, with the same images in the same splits and the same host: growing should pay less
    here.
    """

    name = "digits_shuffled"
    description = "digits with its pixels shuffled by one fixed permutation (control)"
    reference = ""

    def load(self) -> Splits:
        """The data of :class:`Digits` with shuffled pixels."""
        order = np.random.default_rng(_SHUFFLE_SEED).permutation(_SIDE * _SIDE)
        return _splits((1, _SIDE, _SIDE), order)


@register_task
class DigitsRows(Task):
    """Digits read row by row: sequences of 8 rows of 8 pixels, 10 classes: 1,197 training, 300 validation, 300 test.

    A longer host than those of the other tasks, with five slots; it sees no row beside another.
    """

    name = "digits_rows"
    description = "handwritten digits read as 8 rows of 8 pixels, 10 classes (scikit-learn)"
    slots = block_names(5)

    def load(self) -> Splits:
        """The images of :class:`Digits` in the same splits; the columns are the channels, each standardised."""
        return _splits((_SIDE, _SIDE))

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """Five pointwise blocks of 8 channels; the head reads the mean of all rows."""
        return sequence_host(_SIDE, 1, 10, scaled(8, width), depth, self.slots)


def _splits(form: tuple[int, ...], order: np.ndarray | slice = slice(None)) -> Splits:
    """Images as arrays of shape ``form``, their pixels in this order."""
    digits = load_digits()
    images = digits.data[:, order].reshape(-1, *form)
    return split_in_three(images, digits.target, val=300, test=300)
