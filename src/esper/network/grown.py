"""The grown network as a plain module: no hooks, no state."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from esper.network.host_call import HostCall
from esper.network.seed import Seed
from esper.network.slot import Slot


def _blend(module: nn.Module, args: Any, output: Any) -> Any:
    assert isinstance(module, GrownModule)
    h = module.port.read(output)
    keep = module.call.positions_to_mix(h, module.padding) if module.seed.mixes_positions else None
    return module.port.write(output, module.seed.blend(h, keep))


class GrownModule(nn.Module):
    """A submodule of the host with a seed blended into its output, at a fixed alpha.

    It answers for the submodule: attributes that it does not have itself are the submodule's. The blend is a forward
    hook on itself because fused kernels (``nn.TransformerEncoderLayer`` in evaluation), which read a submodule's
    weights instead of calling it, stand back where there are hooks; they would pass over the seed in silence.
    """

    def __init__(self, host: nn.Module, seed: Seed, slot: Slot, call: HostCall) -> None:
        super().__init__()
        self.host = host
        self.seed = seed
        self.port = slot.port
        self.padding = slot.padding
        self.call = call
        self.training = host.training
        self.register_forward_hook(_blend)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The submodule's own output; the hook blends the seed in."""
        return self.host(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("host"), name)


def plain_copy(model: nn.Module, slots: Sequence[Slot]) -> nn.Module:
    """A deep copy of ``model`` without hooks, every seed of alpha > 0 built in; ``slots`` are all that act in it.

    It keeps no state, can be trained on and goes through ``torch.export``. Seeds in TRAINING are left out.
    """
    calls = {slot.call for slot in slots}
    for slot in slots:
        slot.withdraw()
    for call in calls:
        call.withdraw()
    try:
        return _assemble(model, [slot for slot in slots if slot.seed is not None and slot.alpha > 0])
    finally:
        for call in calls:
            call.attach(model)
        for slot in slots:
            slot.refresh()


def _assemble(model: nn.Module, slots: Sequence[Slot]) -> nn.Module:
    """A deep copy of ``model``, which must carry no hooks of the slots, with the seeds of ``slots`` built in."""
    grown = copy.deepcopy(model, {id(t): t.detach().clone() for t in _results_kept_in(model)})
    call = HostCall({slot.name: slot.padding for slot in slots})
    call.attach(grown)
    targets = [(grown.get_submodule(slot.name), slot) for slot in slots]
    for target, slot in targets:
        assert slot.seed is not None
        seed = copy.deepcopy(slot.seed)
        seed.whole = slot.alpha == 1
        wrapped = GrownModule(target, seed, slot, call)
        for parent in [m for m in grown.modules() if m is not wrapped]:
            for name, child in parent._modules.items():
                if child is target:
                    parent._modules[name] = wrapped
    return grown


def _results_kept_in(model: nn.Module) -> Iterator[Tensor]:
    """Tensors of the last forward pass that modules keep: an auxiliary loss, a weight that a hook has made of others.

    They hang on a graph, which cannot be copied.
    """
    for module in model.modules():
        kept = [value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")]
        for value in pytree.tree_leaves([*kept, module._buffers]):
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value
