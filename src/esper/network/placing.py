"""Where in the host's module tree a seed is registered, so that whatever walks modules finds it.

A seed is a submodule of the host: ``model.parameters()``, ``state_dict()``, ``zero_grad()``, ``to()`` and every tool
that is built on them see it. It acts through a forward hook on the slot's submodule, so where it is registered changes
no computation; but a container that runs its children one after the other (``nn.Sequential``, or any class that
iterates over ``self.children()``) would run it too. Hence the place is a *leaf*: a module that has no submodules of its
own, and so does not iterate over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

NAME = "esper_seed"
"""Attribute under which a leaf holds a seed. The keys of its parameters are ``PATH.esper_seed.…``."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Place:
    """A leaf of the host and the attribute under which it holds the seed of one slot.

    Args:
        path: Path of the leaf in the host.
        module: The leaf.
        name: The attribute.
    """

    path: str
    module: nn.Module
    name: str

    @property
    def nursery(self) -> str:
        """The attribute under which the leaf holds what auditions in the slot."""
        return f"{self.name}_nursery"

    @property
    def prefix(self) -> str:
        """What the host's names of the seed's parameters begin with."""
        return f"{self.path}.{self.name}" if self.path else self.name

    def hold(self, held: Mapping[str, nn.Module]) -> None:
        """Register these, by attribute, in place of what was registered; none leave the leaf as it was before any.

        Seeds of one leaf stand in the order of their names, whichever came first, so that two models with the same
        seeds have the same order of parameters.
        """
        new = {name: module for name, module in held.items() if self.module._modules.get(name) is not module}
        for name in {self.name, self.nursery} - held.keys():
            self.module._modules.pop(name, None)
        for name, module in new.items():
            self.module.add_module(name, module)
        for name in sorted(name for name in self.module._modules if name.startswith(NAME)) if new else ():
            self.module._modules[name] = self.module._modules.pop(name)


def is_of_seed(name: str) -> bool:
    """Whether this key of a model's state, or name of a parameter, is that of a seed."""
    return any(part.startswith(NAME) for part in name.split("."))


def find_places(model: nn.Module, slots: Sequence[str]) -> list[Place]:
    """For each slot the last leaf inside its submodule, or the nearest leaf around it where there is none inside.

    An empty ``nn.Sequential``, a shortcut in many networks, holds no leaf; its surroundings do. Two slots with the same
    leaf hold their seeds under two names. Structures alike give places alike.

    Raises:
        ValueError: If the model consists of containers alone.
    """
    taken: dict[str, int] = {}
    places = []
    for slot in slots:
        path = _leaf_near(model, slot)
        count = taken.get(path, 0)
        taken[path] = count + 1
        places.append(Place(path, model.get_submodule(path), NAME if count == 0 else f"{NAME}_{count + 1}"))
    return places


def _leaf_near(model: nn.Module, slot: str) -> str:
    path = slot
    while True:
        named = model.get_submodule(path).named_modules()
        inside = [name for name, module in named if _is_leaf(module) and "parametrizations" not in name.split(".")]
        if inside:
            return ".".join(part for part in (path, inside[-1]) if part)
        if not path:
            raise ValueError(
                f"{type(model).__name__} consists of containers alone, so there is no module that could hold a seed; "
                "put the network's layers into it"
            )
        path = path.rpartition(".")[0]


def _is_leaf(module: nn.Module) -> bool:
    """Whether nothing in ``module`` can run over its submodules: it has none, but for parametrizations and seeds."""
    names = [name for name in module._modules if not name.startswith(NAME)]
    return not isinstance(module, _CONTAINERS) and set(names) <= {"parametrizations"}
