"""Spaces as plain data, and back: what a saved policy remembers of its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


def to_plain(space: spaces.Space) -> dict[str, Any]:
    """``space`` as JSON data.

    Raises:
        ValueError: For a space that is not supported.
    """
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "entries": [[str(key), to_plain(inner)] for key, inner in space.items()]}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "entries": [to_plain(inner) for inner in space]}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"kind": "Box", **bounds, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        start, dtype = space.start.tolist(), str(space.dtype)
        return {"kind": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": start, "dtype": dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    raise ValueError(f"unsupported space {space}")


def from_plain(data: dict[str, Any]) -> spaces.Space:
    """The space that :func:`to_plain` wrote.

    Raises:
        ValueError: For what it never writes.
    """
    try:
        kind = data["kind"]
        if kind == "Dict":
            return spaces.Dict([(key, from_plain(inner)) for key, inner in data["entries"]])
        if kind == "Tuple":
            return spaces.Tuple([from_plain(inner) for inner in data["entries"]])
        if kind == "Box":
            shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
            low, high = (_bounded(data[side], shape, dtype) for side in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "Discrete":
            return spaces.Discrete(data["n"], start=data["start"])
        if kind == "MultiDiscrete":
            dtype = np.dtype(data["dtype"])
            return spaces.MultiDiscrete(np.array(data["nvec"]), dtype.type, start=np.array(data["start"]))
        if kind == "MultiBinary":
            return spaces.MultiBinary(data["n"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a space as plain data, got {data!r:.80}") from error
    raise ValueError(f"expected a space as plain data, got one of kind {kind!r}")


def _bound(bound: np.ndarray) -> Any:
    """One number where all are the same (as of images); JSON has no infinity, so that it is a word."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0])
    return [_number(number) for number in bound.flat]


def _number(number: Any) -> Any:
    return number.item() if np.isfinite(number) else str(float(number))


def _bounded(bound: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = bound if isinstance(bound, list) else [bound]
    array = np.array([float(number) if isinstance(number, str) else number for number in numbers], dtype)
    return array.reshape(shape) if isinstance(bound, list) else np.full(shape, array[0], dtype)
