"""Checkpoints: nested plain data and tensors as JSON and safetensors, replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

_TREE, _TENSORS = "state.json", "state.safetensors"
_TENSOR, _ARRAY, _TUPLE, _ITEMS = "$tensor", "$array", "$tuple", "$items"


def save_checkpoint(directory: Path, policy: LSTMPolicyBundle, state: Mapping[str, Any]) -> None:
    """Write ``policy`` and ``state`` to ``directory``, in place of what was there.

    Everything is written beside it first and then moved into its place, so that a process that is killed leaves a whole
    checkpoint: the new one or the one before.

    Args:
        directory: Holds the policy as :meth:`LSTMPolicyBundle.save` writes it, and the state.
        policy: The policy.
        state: Nested mappings, lists and tuples of numbers, strings, ``None``, tensors and NumPy arrays.

    Raises:
        TypeError: For anything else in ``state``.
    """
    fresh, previous = _beside(directory, "new"), _beside(directory, "previous")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    policy.save(fresh)
    tensors: dict[str, Tensor] = {}
    (fresh / _TREE).write_text(json.dumps(_to_json(state, tensors)), encoding="utf-8")
    save_file(tensors, fresh / _TENSORS)
    if directory.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(directory, previous)
    os.replace(fresh, directory)
    shutil.rmtree(previous, ignore_errors=True)


def find_checkpoint(directory: Path) -> Path:
    """Where the last whole checkpoint lies: ``directory``, or beside it when a process was killed between two moves.

    Raises:
        ValueError: When there is none.
    """
    for place in (directory, _beside(directory, "previous")):
        if (place / _TREE).exists():
            return place
    raise ValueError(f"expected a checkpoint in '{directory}', found none")


def holds_checkpoint(directory: Path) -> bool:
    """Whether :func:`find_checkpoint` would find one."""
    return any((place / _TREE).exists() for place in (directory, _beside(directory, "previous")))


def load_state(directory: Path) -> Any:
    """The state that :func:`save_checkpoint` wrote, tensors on the CPU.

    Raises:
        ValueError: When a file is missing or damaged.
    """
    try:
        tree = json.loads((directory / _TREE).read_text(encoding="utf-8"))
        return _from_json(tree, load_file(directory / _TENSORS))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"the checkpoint '{directory}' is damaged or incomplete ({error}); it cannot be resumed from"
        ) from error


def _beside(directory: Path, what: str) -> Path:
    return directory.with_name(f".{directory.name}.{what}")


def _to_json(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON data; tensors and arrays go to ``tensors`` and leave their name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return _to_json(value.item(), tensors)
    if isinstance(value, (Tensor, np.ndarray)):
        name, kind = str(len(tensors)), _TENSOR if isinstance(value, Tensor) else _ARRAY
        tensors[name] = torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: name}
    if isinstance(value, (list, tuple)):
        rows = [_to_json(v, tensors) for v in value]
        return rows if isinstance(value, list) else {_TUPLE: rows}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _to_json(v, tensors) for key, v in value.items()}
        return {_ITEMS: [[_to_json(key, tensors), _to_json(v, tensors)] for key, v in value.items()]}
    raise TypeError(f"a checkpoint holds numbers, strings, tensors, arrays and nests of them, got {type(value)}")


def _from_json(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ARRAY in value:
        return tensors[value[_ARRAY]].numpy()
    if _TUPLE in value:
        return tuple(_from_json(v, tensors) for v in value[_TUPLE])
    if _ITEMS in value:
        return {_from_json(key, tensors): _from_json(v, tensors) for key, v in value[_ITEMS]}
    return {key: _from_json(v, tensors) for key, v in value.items()}
