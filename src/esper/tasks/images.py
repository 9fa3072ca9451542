"""Images that ship with scikit-learn."""

from __future__ import annotations

from sklearn.datasets import load_digits
from torch import nn

from esper.tasks.base import Splits, Task, register_task
from esper.tasks.hosts import BLOCKS, image_host, scaled
from esper.tasks.prepare import split_in_three


@register_task
class Digits(Task):
    """Handwritten digits, 8×8 grey images, 10 classes: 1,197 training, 300 validation, 300 test images."""

    name = "digits"
    description = "handwritten digits, 8×8 grey images, 10 classes (scikit-learn)"
    reference = "support vector machine 97 % (scikit-learn, 'Recognizing hand-written digits', another split)"
    slots = BLOCKS

    def load(self) -> Splits:
        """The 1,797 images of :func:`sklearn.datasets.load_digits`."""
        digits = load_digits()
        return split_in_three(digits.images[:, None], digits.target, val=300, test=300)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A 3×3 convolution of stride 2 and three pointwise blocks at 4×4, of 8 channels."""
        return image_host(1, 10, scaled(8, width), stride=2, depth=depth)
