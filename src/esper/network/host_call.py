"""What the present call of a host says about its positions: which are padding, and whether a cache holds others.

A seed that mixes positions must not mix padding in, and it cannot do its work where the host is called with one
position at a time and finds the others in a cache of its own. Both are seen in the arguments of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.network.example import encoders_around


@dataclass(frozen=True)
class Padding:
    """A mask ``[N, L]`` among the host's arguments that says which positions of a slot are padding.

    Args:
        argument: Its name.
        value: What stands in it at padding, as a truth value: ``False`` in an ``attention_mask`` of transformers,
            ``True`` in a ``src_key_padding_mask`` of PyTorch.
    """

    argument: str
    value: bool


class HostCall:
    """Hooks on a host that note its arguments for the seeds inside, as long as the call lasts.

    While it is attached, encoders of ``torch.nn`` with a slot inside make no nested tensors of a padded batch, which
    they do in evaluation: those have no positions.

    Args:
        paddings: For every slot the mask that it needs.
    """

    def __init__(self, paddings: Mapping[str, Padding | None]) -> None:
        self._slots = list(paddings)
        self._wanted = {padding.argument for padding in paddings.values() if padding is not None}
        self._parameters: list[str] = []
        self._caches: list[str] = []
        self._masks: dict[str, Tensor] = {}
        self._cached = False
        self._ran: set[str] | None = None
        """The slots that have run in the present call, if anybody counts."""
        self._encoders: list[nn.TransformerEncoder] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Listen to the calls of ``model``; there are no hooks if it takes neither mask nor cache."""
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._caches = [name for name in self._parameters if "past" in name or "cache_params" in name]
        if self._wanted or self._caches:
            self._handles = [
                model.register_forward_pre_hook(self._enter, with_kwargs=True),
                model.register_forward_hook(self._leave),
            ]
        self._encoders = encoders_around(model, self._slots)
        for encoder in self._encoders:
            encoder.use_nested_tensor = False

    def withdraw(self) -> None:
        """Leave the model as it was before."""
        for handle in self._handles:
            handle.remove()
        for encoder in self._encoders:
            encoder.use_nested_tensor = True
        self._handles, self._encoders = [], []

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(self._parameters, args, strict=False)) | kwargs
        self._masks = {name: given[name] for name in self._wanted if isinstance(given.get(name), Tensor)}
        self._cached = any(_holds_positions(given.get(name)) for name in self._caches)

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self._cached = False
        if not torch.is_grad_enabled():  # else activation checkpointing runs slots again in the backward pass
            self._masks = {}

    @contextmanager
    def counting_runs(self, model: nn.Module) -> Iterator[None]:
        """Inside, which is not for compiled code, a slot that runs more than once in a call is an error."""

        def begin(model: nn.Module, args: Any) -> None:
            self._ran = set()

        def end(model: nn.Module, args: Any, output: Any) -> None:
            self._ran = None

        handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note_run(self, slot: str) -> None:
        """A slot runs.

        Raises:
            ValueError: If it has run in this call before.
        """
        if self._ran is None:
            return
        if slot in self._ran:
            raise ValueError(
                f"slot '{slot}' ran once in the example, but runs more than once in this forward pass, so its output "
                "is not one place in the network; name a submodule that runs once, and give an example_input like the "
                "inputs in training"
            )
        self._ran.add(slot)

    def positions_to_mix(self, h: Tensor, padding: Padding | None) -> Bool[Tensor, "N L"] | None:
        """For a seed that mixes the positions of ``h [N, L, C]``: bools ``[N, L]``, false at padding; ``None`` for all.

        Raises:
            ValueError: If a cache holds earlier positions, which the seed would have to see.
        """
        if self._cached:
            raise ValueError(
                "a seed that mixes positions sees only those of the present call, but the model was called with a "
                "cache of earlier ones, so its output would be wrong; generate with use_cache=False, or let only "
                "blueprints grow that look at one position at a time: norm, lora, lora_large, mlp, mlp_large, gated_mlp"
            )
        mask = None if padding is None else self._masks.get(padding.argument)
        if mask is None or padding is None or mask.shape != h.shape[:2]:
            return None
        return mask.bool() != padding.value


def _holds_positions(cache: Any) -> bool:
    """Whether a cache of transformers, or a tuple of keys and values per layer, holds anything."""
    if not hasattr(cache, "get_seq_length"):
        return isinstance(cache, tuple | list) and len(cache) > 0
    try:
        return bool(cache.get_seq_length() > 0)
    except ValueError:  # of layers that keep a state instead of positions
        return bool(cache.has_previous_state())
