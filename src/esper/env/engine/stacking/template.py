"""A module of one host, run for many: its parameters and running statistics are replaced by stacked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.env.engine.stacking.stacked_tensor import Stacked


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What each host has of its own, by name: parameters, then the running statistics of batch normalisation."""
    statistics = {
        f"{name}.{key}".lstrip("."): buffer
        for name, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
        for key, buffer in norm.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return dict(module.named_parameters()) | statistics


class Template:
    """A module that runs with whatever stacked tensors are bound to it.

    Args:
        module: Any module of the structure in question. It is used up: its own parameters are gone afterwards.

    Attributes:
        shapes: Shape of each of one host's :func:`own_tensors`, by name, in order.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        tensors = own_tensors(module)
        self.shapes: dict[str, torch.Size] = {name: t.shape for name, t in tensors.items()}
        index = {id(t): i for i, t in enumerate(tensors.values())}
        self._places: list[tuple[dict[str, Any], str, int]] = [
            (held, name, index[id(t)])
            for owner in module.modules()
            for held in (owner._parameters, owner._buffers)
            for name, t in held.items()
            if id(t) in index
        ]

    def bind(self, values: Sequence[Stacked]) -> None:
        """Use these tensors, in the order of ``shapes``, from now on."""
        for held, name, i in self._places:
            held[name] = values[i]

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)
