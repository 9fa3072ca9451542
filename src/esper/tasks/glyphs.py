"""Letters and digits in many typefaces, distorted on the spot from shipped drawings."""

from __future__ import annotations

import string
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.tasks.hosts import BLOCKS, scaled
from esper.tasks.larger_hosts import STAGES, residual_network, vision_transformer
from esper.tasks.prepare import make_splits
from esper.tasks.shipped import read_bytes
from esper.tasks.task import Splits, Task, register_task

FAMILIES: dict[str, tuple[str, ...]] = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "cmss10"),
    "mono": (
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique",
        "cmtt10",
    ),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "roman": (
        "STIXGeneral",
        "STIXGeneralBol",
        "STIXGeneralItalic",
        "STIXGeneralBolIta",
        "cmr10",
        "cmb10",
        "cmti10",
    ),
}
"""Typefaces of matplotlib, by family."""

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""The classes, in this order."""

DRAWING_SIDE = 64
"""Pixels of a shipped drawing, along each side."""
SIDE = 28
"""Pixels of an image, along each side."""

_TRAIN, _VALIDATION, _TEST = 50, 5, 10
"""Images of each character in each family."""
_DATA_SEED = 0


@register_task
class Glyphs(Task):
    """Distorted letters and digits, 28×28 grey images, 62 classes: 12,400 training, 1,240 validation, 2,480 test.

    21 typefaces of four families, each image turned, sheared, stretched, shifted, faded and disturbed by chance. Some
    pairs are hardly told apart (I and l, O and 0), so no score reaches 100 %. The training images stand in the order of
    the families.
    """

    name = "glyphs"
    description = "distorted letters and digits in 21 typefaces, 28×28 grey images, 62 classes (fonts of matplotlib)"
    slots: tuple[str, ...] = STAGES
    horizon = 20
    steps_per_decision = 40
    schedule = "cosine"

    def load(self) -> Splits:
        """The shipped drawings, distorted from one fixed seed."""
        rng = np.random.default_rng(_DATA_SEED)
        parts = [part for count in (_TRAIN, _VALIDATION, _TEST) for part in _draw(count, rng)]
        return make_splits(*parts)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A residual network with batch normalisation: stages of 16, 32 and 64 channels at 14×14, 7×7 and 4×4."""
        return residual_network(1, len(CHARACTERS), scaled(16, width), depth, nn.BatchNorm2d)


@register_task
class GlyphTransformer(Glyphs):
    """Glyphs for a vision transformer: the same 12,400 training, 1,240 validation and 2,480 test images."""

    name = "glyph_transformer"
    description = "glyphs, read by a small vision transformer"
    slots = BLOCKS
    learning_rate = 1e-3
    schedule = "constant"

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """Three transformer blocks of 48 channels over 4×4 positions, after a stem of convolutions."""
        return vision_transformer(1, SIDE, len(CHARACTERS), scaled(48, width), depth)


@register_task
class GlyphStream(Glyphs):
    """Glyphs that come family by family: in each quarter of a run 3,100 of the 12,400 training images.

    The 1,240 validation and 2,480 test images are of all families, so that what is forgotten costs, too.
    """

    name = "glyph_stream"
    description = "glyphs whose typefaces change during the run: sans, mono, serif, roman, a quarter each"
    phases = len(FAMILIES)
    schedule = "constant"

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """The network of :class:`Glyphs` with group normalisation, which keeps no statistics of what is gone."""
        return residual_network(1, len(CHARACTERS), scaled(16, width), depth, lambda c: nn.GroupNorm(4, c))


@cache
def drawings() -> np.ndarray:
    """The shipped drawings, 0 or 1, ``[fonts, characters, 64, 64]``, the fonts in the order of :data:`FAMILIES`."""
    bits = np.unpackbits(np.frombuffer(read_bytes("glyphs.bits"), np.uint8))
    return bits.reshape(-1, len(CHARACTERS), DRAWING_SIDE, DRAWING_SIDE)


def _draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of each character in each family, and their classes; one family after the other."""
    grey = F.avg_pool2d(torch.from_numpy(drawings()).float(), 4, stride=2, padding=1)
    images, targets, first = [], [], 0
    for fonts in FAMILIES.values():
        y = np.tile(np.arange(len(CHARACTERS)), count)
        font = first + rng.integers(len(fonts), size=len(y))
        images.append(_distort(grey[font, y][:, None], rng))
        targets.append(y)
        first += len(fonts)
    return np.concatenate(images), np.concatenate(targets)


def _distort(drawn: Tensor, rng: np.random.Generator) -> np.ndarray:
    """``[N, 1, H, W]`` → ``[N, 1, 28, 28]``: turned, sheared, stretched, shifted, faded, with noise in every pixel."""
    count = len(drawn)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, count)

    angle, shear = uniform(-0.3, 0.3), uniform(-0.3, 0.3)
    across, down = uniform(0.75, 1.1), uniform(0.75, 1.1)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [
        [cos * across, (shear * cos - sin) * down, uniform(-0.2, 0.2)],
        [sin * across, (shear * sin + cos) * down, uniform(-0.2, 0.2)],
    ]
    transform = torch.from_numpy(np.array(rows).transpose(2, 0, 1)).float()
    grid = F.affine_grid(transform, [count, 1, SIDE, SIDE], align_corners=False)
    images = F.grid_sample(drawn, grid, align_corners=False).numpy()
    faded = images * uniform(0.5, 1.0)[:, None, None, None]
    return faded + rng.normal(0.0, 0.1, images.shape)
