"""Observation spaces: which of it are features, which are parts with an encoder of their own, and how they are read.

Legend: K rows (environments), D features, C channels, Y height, X width.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from esper.tamiyo.networks.parts import Part

MOST_ONE_HOT = 64
"""Choices of a Discrete or MultiDiscrete space in all, up to which they are one-hot features; with more, embedded."""

MOST_CHOICES = 2**22
"""Choices that can be embedded: a gigabyte of weights at the usual size."""

LEAST_IMAGE_SIDE = 8
"""Pixels on each side from which a two-dimensional Box of bytes is a picture, not a table."""

OBSERVATION_SPACES: dict[type[spaces.Space], str] = {
    spaces.Box: f"features; an image (convolutions) with 3 dimensions, channels first or last, with 4, stacked frames, "
    f"and with 2 of bytes, {LEAST_IMAGE_SIDE} or more each",
    spaces.Discrete: f"one-hot features up to {MOST_ONE_HOT} choices, beyond that an embedding",
    spaces.MultiDiscrete: f"one-hot features up to {MOST_ONE_HOT} choices in all, beyond that an embedding",
    spaces.MultiBinary: "features",
    spaces.Dict: "its entries, nested as you like",
    spaces.Tuple: "its entries, nested as you like",
}
"""What may be an observation, and what it becomes. A module of your own may stand in for what reads any part."""


class ObservationOutsideSpaceWarning(UserWarning):
    """An environment showed a number outside of the bounds that its observation space says."""


class Leaf:
    """One leaf of an observation: its name, its space, and how it is read.

    Args:
        name: Its path.
        space: Its space.
        own: A module of the user's own reads it.

    Raises:
        ValueError: For a space that is not supported, named with the way out.
    """

    part: Part | None
    """How the policy encodes it; ``None`` where it is features."""
    size: int
    """Number of features, 0 for a part."""

    def __init__(self, name: str, space: spaces.Space, *, own: bool = False) -> None:
        self.name, self.space, self.size, self.part = name, space, 0, None
        self.axes: tuple[int, ...] | None = None
        """Of a batch of images: where each axis of [N, frames, C, Y, X] is found."""
        self._warned = False
        if not isinstance(space, tuple(OBSERVATION_SPACES)):
            raise ValueError(_refusal(name, space))
        assert space.shape is not None
        self.low, self.high = self._bounds()
        if own:
            self.part = Part(name=name, kind="own", shape=space.shape)
        elif isinstance(space, spaces.Box) and len(space.shape) > 4:
            raise ValueError(
                f"observation '{name}': a Box of {len(space.shape)} dimensions is neither features nor an image, got "
                f"{space}; give an encoder of your own, or another shape (gymnasium.wrappers.ReshapeObservation)"
            )
        elif isinstance(space, spaces.Box) and _is_image(space):
            self._make_image(space)
        elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            self._make_choices()
        else:
            self.size = int(np.prod(space.shape))

    def _bounds(self) -> tuple[Any, Any]:
        """Least and greatest number of every entry."""
        space = self.space
        if isinstance(space, spaces.Box):
            return space.low, space.high
        if isinstance(space, spaces.Discrete):
            return int(space.start), int(space.start) + int(space.n) - 1
        if isinstance(space, spaces.MultiDiscrete):
            return space.start, space.start + space.nvec - 1
        return 0, 1

    def _make_choices(self) -> None:
        assert self.space.shape is not None
        choices = tuple(int(n) for n in np.ravel(np.asarray(self.high) - np.asarray(self.low) + 1))
        total = sum(choices)
        if total <= MOST_ONE_HOT:
            self.size = total
        elif total <= MOST_CHOICES:
            self.part = Part(name=self.name, kind="indices", shape=self.space.shape, choices=choices)
        else:
            raise ValueError(
                f"observation '{self.name}': {self.space} has {total} choices, at most {MOST_CHOICES} can be embedded; "
                "write them as several smaller numbers (digits, say), or give an encoder of your own"
            )

    def _make_image(self, space: spaces.Box) -> None:
        shape = space.shape if len(space.shape) > 2 else (1, *space.shape)
        *frames, first, _, last = shape
        if len(space.shape) > 2 and first == last:
            raise ValueError(
                f"observation '{self.name}': cannot tell whether the channels of {space} come first or last, there "
                f"are {first} of each; give an encoder of your own, or another shape "
                "(gymnasium.wrappers.ReshapeObservation)"
            )
        channels_first = len(space.shape) == 2 or first < last
        axes = list(range(len(shape)))
        if not channels_first:
            axes = [*axes[:-3], axes[-1], axes[-3], axes[-2]]
        self.axes = (0, *(1 + axis for axis in axes))
        moved = [shape[axis] for axis in axes]
        low, high = float(space.low.min()), float(space.high.max())
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            low, high = 0.0, 1.0
        chw = (int(np.prod([*frames, moved[-3]])), moved[-2], moved[-1])
        self.part = Part(name=self.name, kind="image", shape=chw, low=low, high=high)

    # ------------------------------------------------------------------ reading

    def checked(self, batch: Any, rows: int, ignore: np.ndarray | None) -> np.ndarray:
        """``batch`` as an array: numbers [K, ...] of the shape that the space says, finite, and choices within it.

        Args:
            batch: What was shown.
            rows: K.
            ignore: [K] bool, rows whose content means nothing.

        Raises:
            ValueError: For anything else.

        Warns:
            ObservationOutsideSpaceWarning: Once, for a number outside of its bounds.
        """
        array, expected = np.asarray(batch), (rows, *(self.space.shape or ()))
        if array.shape != expected or array.dtype.kind not in "biuf":
            raise ValueError(
                f"observation '{self.name}': expected numbers of shape {expected}, one row per environment, "
                f"got {array.dtype} {array.shape}"
            )
        flat = array.reshape(rows, -1)
        if ignore is not None and ignore.any():
            flat = flat.copy("K")
            flat[ignore] = np.ravel(np.broadcast_to(self.low, self.space.shape or ())) if self._is_choice else 0
            array = flat.reshape(expected)
        if array.dtype.kind == "f" and not np.isfinite(flat).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(flat))[0])
            raise ValueError(
                f"observation '{self.name}' of environment {row} is not finite ({flat[row, column]} at number "
                f"{column}); the environment must not return NaN or infinity"
            )
        self._check_bounds(array, ignore)
        return array

    @property
    def _is_choice(self) -> bool:
        return isinstance(self.space, (spaces.Discrete, spaces.MultiDiscrete))

    def _check_bounds(self, array: np.ndarray, ignore: np.ndarray | None) -> None:
        if array.dtype == self.space.dtype == np.uint8 and np.all(self.low == 0) and np.all(self.high == 255):
            return
        outside = ((array < self.low) | (array > self.high)).reshape(len(array), -1).any(-1)
        if ignore is not None:
            outside &= ~ignore
        if not outside.any():
            return
        message = (
            f"observation '{self.name}' of environment {int(outside.argmax())} is outside of its space {self.space}"
        )
        if not isinstance(self.space, spaces.Box):
            raise ValueError(message)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{message}; it is used as it is, and this is said once. Widen the space, or clip "
                "(gymnasium.wrappers.TransformObservation)",
                ObservationOutsideSpaceWarning,
                stacklevel=2,
            )

    def features(self, array: np.ndarray) -> np.ndarray:
        """Features [K, size], float32, of a checked batch."""
        rows = len(array)
        if not self._is_choice:
            return array.astype(np.float32).reshape(rows, -1)
        choices = (array - self.low).reshape(rows, -1)
        counts = np.ravel(np.asarray(self.high) - np.asarray(self.low) + 1)
        starts = np.cumsum([0, *counts[:-1]])
        one_hot = np.zeros((rows, self.size), np.float32)
        np.put_along_axis(one_hot, (choices + starts).astype(np.int64), 1.0, axis=1)
        return one_hot

    def encoded(self, array: np.ndarray) -> Tensor:
        """The part [K, ...] of a checked batch: images as [K, C, Y, X], choices as indices from 0."""
        assert self.part is not None
        if self.part.kind == "indices":
            return torch.from_numpy((array - self.low).astype(np.int64))
        if self.part.kind == "image":
            assert self.axes is not None
            whole = array if array.ndim > 3 else array[:, None]
            array = whole.transpose(self.axes).reshape(len(array), *self.part.shape)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return torch.from_numpy(np.ascontiguousarray(array).copy())


def _is_image(space: spaces.Box) -> bool:
    if len(space.shape) == 2:
        return space.dtype == np.uint8 and min(space.shape) >= LEAST_IMAGE_SIDE
    return len(space.shape) in (3, 4)


def _refusal(name: str, space: spaces.Space) -> str:
    supported = ", ".join(kind.__name__ for kind in OBSERVATION_SPACES)
    return (
        f"observation '{name}': unsupported space {space}; supported observations are {supported}. "
        "Encode it as numbers first (gymnasium.wrappers.TransformObservation), or leave it out "
        "(gymnasium.wrappers.FilterObservation)"
    )


def read_leaves(entries: Mapping[str, spaces.Space], own: Collection[str]) -> list[Leaf]:
    """A leaf for every entry, those named in ``own`` read by a module of the user's own.

    Raises:
        ValueError: For a space that is not supported, or a name in ``own`` that is no entry.
    """
    unknown = sorted(set(own) - set(entries))
    if unknown:
        raise ValueError(f"encoders are given for {unknown}, but the parts of the observation are {list(entries)}")
    return [Leaf(name, space, own=name in own) for name, space in entries.items()]
