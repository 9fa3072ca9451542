"""The grown network as a plain module: no hooks, no books."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from esper.growth.attach import Port
from esper.growth.seed import Seed
from esper.growth.slot import Slot


class GrownModule(nn.Module):
    """A submodule of the host with a seed blended into its output, at a fixed alpha.

    It answers for the submodule: attributes that it does not have itself are the submodule's.
    """

    def __init__(self, host: nn.Module, seed: Seed, port: Port) -> None:
        super().__init__()
        self.host = host
        self.seed = seed
        self.port = port
        self.training = host.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The submodule's output with the seed blended in."""
        output = self.host(*args, **kwargs)
        return self.port.write(output, self.seed.blend(self.port.read(output)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("host"), name)


def assemble(model: nn.Module, slots: Iterable[Slot]) -> nn.Module:
    """A deep copy of ``model``, which must carry no hooks of the slots, with the seeds of ``slots`` built in."""
    grown = copy.deepcopy(model)
    targets = [(grown.get_submodule(slot.name), slot) for slot in slots]
    for target, slot in targets:
        assert slot.seed is not None
        wrapped = GrownModule(target, copy.deepcopy(slot.seed), slot.port)
        for parent in [m for m in grown.modules() if m is not wrapped]:
            for name, child in parent._modules.items():
                if child is target:
                    parent._modules[name] = wrapped
    return grown
