"""Averages of a growing network's weights: a copy of the host that grows along with it.

What averages weights (``AveragedModel``, any moving average over a ``copy.deepcopy``) pairs the parameters of copy and
host by their order. A :class:`Follower` keeps the two alike. PyTorch's ``AveragedModel`` does not look whether they
are, and would mix a seed's weights into others'; from the import of this module on its ``update_parameters`` refuses to
where a network carries seeds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from esper.growth.saving import acting_slots
from esper.lifecycle import Stage
from esper.network.growing_network import GrowingNetwork
from esper.network.host_call import HostCall
from esper.network.placing import is_of_seed
from esper.network.slot import Slot


class Follower:
    """Gives a copy of the host the seeds that the host has, and takes them out when they go there.

    A new seed of the copy has the weights of the host's. As long as that one is isolated, when the copy's output does
    not depend on it, it keeps them; from then on they are the business of whoever averages. Alpha is the host's.

    Args:
        network: The growing network.
        model: The copy, or something around it. One made in the middle of growth keeps the weights of its seeds.

    Raises:
        ValueError: If there is no copy of the host in ``model``.
    """

    def __init__(self, network: GrowingNetwork, model: nn.Module) -> None:
        own = _find_copy(model, network.model)
        self._call = HostCall({slot.name: slot.padding for slot in network.slots})
        self._pairs = [(slot, slot.in_copy(own, self._call)) for slot in network.slots]
        present = {slot.name: slot for slot in acting_slots(own)}
        for _, twin in self._pairs:
            if (old := present.get(twin.name)) is not None:
                old.withdraw()
                old.call.withdraw()
                twin.seed, twin.nursery, twin.life = old.seed, old.nursery, old.life
        self._call.attach(own)
        self.follow()

    def follow(self) -> None:
        """Make the copy's slots what the host's are now."""
        for slot, twin in self._pairs:
            if slot.seed is None:
                twin.seed = None
            elif twin.stage is Stage.TRAINING or _identity(twin) != _identity(slot):
                twin.seed = copy.deepcopy(slot.seed).to(_device(twin)).train(twin.module.training)
            if _candidates(twin) != _candidates(slot):
                twin.nursery = None if slot.nursery is None else copy.deepcopy(slot.nursery).to(_device(twin))
            twin.life = copy.copy(slot.life)
            twin.refresh()

    def let_go(self) -> None:
        """Take the seeds out of the copy."""
        for _, twin in self._pairs:
            twin.withdraw()
        self._call.withdraw()

    @contextmanager
    def as_live(self) -> Iterator[None]:
        """Inside, the copy's seeds act as the host's do, also where those act otherwise than their state says."""
        with ExitStack() as stack:
            for slot, twin in self._pairs:
                stack.enter_context(twin.acting_as(slot))
            yield


def _find_copy(model: nn.Module, host: nn.Module) -> nn.Module:
    """The first module in ``model`` that is built like ``host``, seeds aside."""
    for module in model.modules():
        if type(module) is type(host) and module is not host and _host_form(module) == _host_form(host):
            return module
    raise ValueError(
        f"expected a copy of the {type(host).__name__} that grows (copy.deepcopy(model), or an AveragedModel of it); "
        f"there is none in this {type(model).__name__}"
    )


def _host_form(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in _form(module).items() if not is_of_seed(name)}


def _form(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _device(slot: Slot) -> torch.device:
    """Where a seed of the copy belongs, which may be elsewhere than the host."""
    return next((p.device for p in slot.module.parameters()), slot.device)


def _candidates(slot: Slot) -> tuple[int, list[int]]:
    """Tells what auditions in a slot from what auditioned there at other times."""
    return slot.life.auditions, [] if slot.nursery is None else list(slot.nursery.seeds)


def _identity(slot: Slot) -> tuple[int, str | None, str | None]:
    """Tells a seed apart from others in the same slot."""
    return slot.life.germinations, slot.blueprint, slot.style


_update_parameters = AveragedModel.update_parameters


@functools.wraps(_update_parameters)
def _update_alike(averaged: AveragedModel, model: nn.Module) -> None:
    ours, theirs = _form(averaged.module), _form(model)
    if ours != theirs and any(is_of_seed(name) for name in [*ours, *theirs]):
        raise ValueError(
            f"this {type(averaged).__name__} was made when the {type(model).__name__} had other seeds than now, and "
            "would average the parameters of one module with those of another; call growth.follow(averaged) once, "
            "when both are made, and it grows along"
        )
    _update_parameters(averaged, model)


AveragedModel.update_parameters = _update_alike  # type: ignore[method-assign, assignment]
