"""Checkpoints: a policy and nested plain data, replaced as a whole or not at all; the one before is kept beside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.files import Format, sync
from esper.tamiyo.policy.lstm_bundle import POLICY, POLICY_FILE, LSTMPolicyBundle

STATE_FILE = "state.safetensors"

STATE = Format("esper_state", 5, "the state of a training run")

_TENSOR, _ARRAY, _TUPLE, _ITEMS = "$tensor", "$array", "$tuple", "$items"


def save_checkpoint(directory: Path, policy: LSTMPolicyBundle, state: Mapping[str, Any]) -> None:
    """Write ``policy`` and ``state`` to ``directory``, in place of what was there.

    Everything is written beside it and synced first, and then moved into its place, so that a process that is killed,
    or a machine that stops, leaves a whole checkpoint: the new one or the one before. The one before stays, in
    :func:`previous`.

    Args:
        directory: Holds the policy as :meth:`LSTMPolicyBundle.save` writes it, and the state.
        policy: The policy.
        state: Nested mappings, lists and tuples of numbers, strings, ``None``, tensors and NumPy arrays.

    Raises:
        TypeError: For anything else in ``state``.
        OSError: When it cannot be written; what was there is still there.
    """
    fresh, before = directory.with_name(f".{directory.name}.new"), previous(directory)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    policy.save(fresh)
    tensors: dict[str, Tensor] = {}
    STATE.write(fresh / STATE_FILE, {"state": _to_json(state, tensors)}, tensors)
    if directory.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.replace(directory, before)
    os.replace(fresh, directory)
    sync(directory.parent)


def previous(directory: Path) -> Path:
    """Where the checkpoint before the one in ``directory`` lies."""
    return directory.with_name(f"{directory.name}.previous")


def find_checkpoint(directory: Path) -> Path:
    """Where the last checkpoint lies: ``directory``, or beside it when a process was killed between two moves.

    Raises:
        ValueError: When there is none, or it is damaged or of another version; the message names the checkpoint before
            it, if that one is whole.
        OSError: When it cannot be read.
    """
    place = directory if directory.exists() else previous(directory)
    if not place.exists():
        raise ValueError(f"expected a checkpoint in '{directory}', found none")
    try:
        _check(place)
    except ValueError as error:
        raise ValueError(f"{error}{_way_out(place)}") from error
    return place


def holds_checkpoint(directory: Path) -> bool:
    """Whether there is one for :func:`find_checkpoint` to find."""
    return directory.exists() or previous(directory).exists()


def load_state(directory: Path) -> Any:
    """The state that :func:`save_checkpoint` wrote, tensors on the CPU.

    Raises:
        ValueError: When the file is missing, damaged or of another version.
        OSError: When it cannot be read.
    """
    description, tensors = STATE.read(directory / STATE_FILE)
    try:
        return _from_json(description["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{directory / STATE_FILE}': field 'state' is no state of a training run") from error


def _check(directory: Path) -> None:
    POLICY.read(directory / POLICY_FILE)
    STATE.read(directory / STATE_FILE)


def _way_out(directory: Path) -> str:
    """What to do about a checkpoint that cannot be read."""
    older = previous(directory)
    try:
        _check(older)
    except (OSError, ValueError):
        return ""
    return f"; the one before it is whole: remove '{directory}' to go on from '{older}'"


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
