"""A module of one host, run for many: its parameters are replaced by stacked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from esper.env.engine.stacking.stacked_tensor import Stacked


class Template:
    """A module that runs with whatever stacked parameters are bound to it.

    Args:
        module: Any module of the structure in question. It is used up: its own parameters are gone afterwards.

    Attributes:
        shapes: Shape of every parameter of one host, by name, in order.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shapes: dict[str, torch.Size] = {name: p.shape for name, p in module.named_parameters()}
        index = {id(p): i for i, p in enumerate(module.parameters())}
        self._places = [
            (owner._parameters, name, index[id(p)])
            for owner in module.modules()
            for name, p in owner._parameters.items()
            if p is not None
        ]

    def bind(self, values: Sequence[Stacked]) -> None:
        """Use these parameters, in the order of ``shapes``, from now on."""
        for parameters, name, i in self._places:
            parameters[name] = values[i]  # type: ignore[assignment]

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)
