"""The kinds of module that can be germinated, the three ways they join a slot, and what each costs."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper.actions import BLUEPRINT_NAMES, add_blueprint, remove_blueprint
from esper.network.blueprints import blueprint, context, convolutional, pointwise  # noqa: F401 - importing them registers them
from esper.network.blueprints.blueprint import KINDS, Blueprint, Kind, SlotSpec
from esper.network.blueprints.promises import check_promises
from esper.network.blueprints.styles import STYLE_MODULES, Style

BLUEPRINTS: dict[str, type[Blueprint]] = {name: blueprint.BLUEPRINTS[name] for name in BLUEPRINT_NAMES}
"""Every blueprint by its name, in the order of the action space (:data:`esper.actions.ALL_BLUEPRINTS`)."""

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
    "register_blueprint",
    "unregister_blueprint",
]


_B = TypeVar("_B", bound=type[Blueprint])


def register_blueprint(kind: _B) -> _B:
    """Class decorator: a kind of module of your own can be germinated from now on, by its ``name``.

    It is one more choice of the head ``blueprint``, after the thirteen, for everything that is built from now on:
    Growth, environments, rules, policies in training. A policy that was trained without it never chooses it. On the
    command line and in worker processes it is known where its module is imported (``--import``).

    The class is tried on a small example of every kind of slot that it says it fits.

    Args:
        kind: A subclass of :class:`~esper.network.blueprints.Blueprint` with a ``name``. One that was registered under
            the same name takes the place of the former, as when a cell of a notebook runs again.

    Raises:
        ValueError: For a name that is none, or that comes with Esper; or for a promise that it breaks.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> @register_blueprint
        ... class Sine(Blueprint):
        ...     "A sine of a linear map, weighed by channel."
        ...     name = "sine"
        ...     kinds = frozenset({"vector", "sequence"})
        ...
        ...     def __init__(self, spec):
        ...         super().__init__(spec)
        ...         self.inside = nn.Linear(spec.channels, spec.channels)
        ...         self.weight = nn.Parameter(torch.zeros(spec.channels))
        ...
        ...     def forward(self, h):
        ...         return self.weight * torch.sin(self.inside(h))
        >>> count_parameters("sine", SlotSpec("vector", 8))
        80
        >>> unregister_blueprint("sine")
    """
    if not (isinstance(kind, type) and issubclass(kind, Blueprint)):
        raise TypeError(f"expected a subclass of esper.Blueprint, got {kind!r}")
    name = getattr(kind, "name", "")
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(f"blueprint {kind.__name__}: `name` must be a word such as 'my_block', got {name!r}")
    if name in BLUEPRINT_NAMES:
        raise ValueError(f"blueprint {kind.__name__}: the name '{name}' is that of one that comes with Esper")
    check_promises(kind)
    if name in BLUEPRINTS:
        _forget_costs()
    else:
        add_blueprint(name)
    BLUEPRINTS[name] = kind
    return kind


def unregister_blueprint(name: str) -> None:
    """Take back :func:`register_blueprint`; networks that hold such a seed must not be used any more.

    Raises:
        ValueError: For a name that was not registered so.
    """
    if name in BLUEPRINT_NAMES or name not in BLUEPRINTS:
        raise ValueError(f"'{name}' is not a blueprint that has been registered")
    del BLUEPRINTS[name]
    remove_blueprint(name)
    _forget_costs()


def _forget_costs() -> None:
    count_parameters.cache_clear()
    count_flops.cache_clear()


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
