"""Trees of spaces and of what lies in them: Dict and Tuple, nested, with other spaces at the leaves.

A leaf has a *path*: the keys and positions that lead to it, joined by "/"; a space that is no tree has the path "".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

TREES = (spaces.Dict, spaces.Tuple)


def branches(space: spaces.Dict | spaces.Tuple) -> dict[str, spaces.Space]:
    """What stands right below: by key, or by position."""
    if isinstance(space, spaces.Dict):
        return {str(key): inner for key, inner in space.items()}
    return {str(i): inner for i, inner in enumerate(space)}


def leaves(space: spaces.Space, path: str = "") -> dict[str, spaces.Space]:
    """The leaves by path."""
    if not isinstance(space, TREES):
        return {path: space}
    found: dict[str, spaces.Space] = {}
    for key, inner in branches(space).items():
        found |= leaves(inner, joined(path, key))
    return found


def values(tree: Any, path: str = "") -> dict[str, Any]:
    """What lies at the leaves of nested mappings and tuples, by path, without Gymnasium's flags ("_x" beside "x")."""
    if isinstance(tree, Mapping):
        inner = {str(k): v for k, v in tree.items() if not (str(k).startswith("_") and str(k)[1:] in tree)}
    elif isinstance(tree, tuple):
        inner = {str(i): v for i, v in enumerate(tree)}
    else:
        return {path: tree}
    found: dict[str, Any] = {}
    for key, value in inner.items():
        found |= values(value, joined(path, key))
    return found


def rows_of(tree: Any, rows: np.ndarray) -> Any:
    """``rows`` of every array in nested mappings and tuples."""
    if isinstance(tree, Mapping):
        return {key: rows_of(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(rows_of(value, rows) for value in tree)
    return np.asarray(tree)[rows]


def joined(path: str, key: str) -> str:
    """The path of what lies at ``key`` below ``path``."""
    return f"{path}/{key}" if path else key
