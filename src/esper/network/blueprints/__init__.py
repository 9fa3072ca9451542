"""The 13 kinds of module that can be germinated, the three ways they join a slot, and what each costs."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper.actions import BLUEPRINT_NAMES
from esper.network.blueprints import blueprint, context, convolutional, pointwise  # noqa: F401 - importing them registers them
from esper.network.blueprints.blueprint import KINDS, Blueprint, Kind, SlotSpec
from esper.network.blueprints.styles import STYLE_MODULES, Style

BLUEPRINTS: dict[str, type[Blueprint]] = {name: blueprint.BLUEPRINTS[name] for name in BLUEPRINT_NAMES}
"""Every blueprint by its name, in the order of the action space."""

assert len(BLUEPRINTS) == len(blueprint.BLUEPRINTS), "a registered blueprint is missing in BLUEPRINT_NAMES"

__all__ = [
    "BLUEPRINTS",
    "KINDS",
    "Blueprint",
    "Kind",
    "SlotSpec",
    "Style",
    "build_blueprint",
    "build_style",
    "count_flops",
    "count_parameters",
]


def build_blueprint(name: str, spec: SlotSpec) -> Blueprint:
    """A new blueprint for a slot; its initial weights come from the global random state.

    Raises:
        ValueError: For an unknown name, or if it does not fit the slot.
    """
    if name not in BLUEPRINTS:
        raise ValueError(f"expected a blueprint out of {', '.join(BLUEPRINTS)}; got {name!r}")
    return BLUEPRINTS[name](spec)


def build_style(name: str, spec: SlotSpec) -> Style:
    """A new style module for a slot.

    Raises:
        ValueError: For an unknown name.
    """
    if name not in STYLE_MODULES:
        raise ValueError(f"expected a style out of {', '.join(STYLE_MODULES)}; got {name!r}")
    return STYLE_MODULES[name](spec)


def _build_on_meta(name: str, spec: SlotSpec, style: str) -> tuple[Blueprint, Style]:
    with torch.device("meta"):
        return build_blueprint(name, spec), build_style(style, spec)


@cache
def count_parameters(name: str, spec: SlotSpec, style: str = "add") -> int:
    """Exact number of parameters that a seed of this blueprint and style adds; nothing is allocated."""
    return sum(p.numel() for p in nn.ModuleList(_build_on_meta(name, spec, style)).parameters())


@cache
def count_flops(name: str, spec: SlotSpec, style: str = "add") -> int:
    """FLOPs of one forward pass over one sample of the example's size, as :mod:`torch.utils.flop_counter` counts them.

    Matrix products, convolutions and attention count, a multiply-add as two; element-wise work counts as zero.
    """
    module, blend = _build_on_meta(name, spec, style)
    h = torch.empty(spec.shape(1), device="meta")
    with FlopCounterMode(display=False) as counter:
        blend(h, module(h))
    return counter.get_total_flops()
