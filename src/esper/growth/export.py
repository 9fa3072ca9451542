"""A grown network as a file that runs where Esper is not installed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from esper.network.example import items_of
from esper.programs import MANIFEST, write_program


def export_model(model: nn.Module, example_input: Any, path: Path, manifest: Mapping[str, Any] | None = None) -> Path:
    """Write ``model`` to ``path``: ``.pt2`` by ``torch.export``, ``.onnx`` by ``torch.onnx``.

    The number of samples may be another when it is used, wherever the model's code allows that. A model that puts out a
    dataclass or a mapping puts out a plain ``dict`` in the file, so that the file needs no package but PyTorch; what is
    no tensor in it (the cache of a language model) is left out.

    A ``manifest`` that says what goes in and comes out travels in the file, as JSON under the name ``manifest.json``:
    among the extra files of a ``.pt2``, among the custom metadata of an ``.onnx``.

    Raises:
        ValueError: For another suffix, or missing packages.
    """
    args, kwargs = _arguments(example_input)
    extra = {} if manifest is None else {MANIFEST: json.dumps(manifest)}
    return write_program(lambda: export_program(model, args, kwargs), path, extra=extra)


def export_program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """``torch.export`` with a free number of samples."""
    args, kwargs = pytree.tree_map_only(Tensor, _two_samples, (args, kwargs))
    shapes = pytree.tree_map(_free_batch, kwargs or args)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        handle = model.register_forward_hook(lambda module, args, output: _plain(output))
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        finally:
            handle.remove()


def _plain(output: Any) -> Any:
    """The tensors of an output in tuples and dicts, whatever classes it is made of."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        return tuple(_plain(member) for member in output)
    named = {name: _plain(member) for name, member in items_of(output)}
    return {name: member for name, member in named.items() if member is not None} or None


def _arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (tuple(example_input), {}) if isinstance(example_input, tuple | list) else ((example_input,), {})


def _two_samples(tensor: Tensor) -> Tensor:
    """Export would take a single sample for a constant of the model."""
    return torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor


def _free_batch(value: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None
