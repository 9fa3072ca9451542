"""Slots for a host that nobody has named slots for: ``slots="auto"``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from esper.network.survey import call_example, find_tensor, items_of

MOST_SLOTS = 6
"""More are not proposed: a controller that has to look everywhere decides slowly."""

LEAST_CHANNELS = 4

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish)


@dataclass
class _Candidate:
    """A submodule that ran once and put out a tensor that can be a slot."""

    name: str
    module: nn.Module
    rank: int
    shape: tuple[int, ...]

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def is_block(self) -> bool:
        return any(True for _ in self.module.children())


def propose_slots(model: nn.Module, example_input: Any) -> list[str]:
    """Names of up to six submodules whose outputs are good places to grow, in the order of execution.

    The first of these rules that finds any decides: blocks of one class that stand side by side (the stages of a
    ResNet, the layers of a transformer), the outermost ones; two activations or more; other submodules. Submodules
    that run more than once, have fewer than four channels, or put out what the model puts out, are left alone.

    Raises:
        ValueError: If there is none.

    Example:
        >>> import torch
        >>> host = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> propose_slots(host, torch.zeros(1, 4))
        ['1', '3']
    """
    candidates = _candidates(model, example_input)
    chosen = _repeated_blocks(candidates) or _activations(candidates) or _outermost(candidates)
    if not chosen:
        raise ValueError(
            f"found no slot in {type(model).__name__}: no submodule runs once and outputs one floating tensor [N, C], "
            f"[N, L, C] or [N, C, H, W] of {LEAST_CHANNELS} channels or more; name slots as in model.named_modules()"
        )
    return [c.name for c in _spread(sorted(chosen, key=lambda c: c.rank))]


def _candidates(model: nn.Module, example_input: Any) -> list[_Candidate]:
    outputs: dict[str, list[Any]] = defaultdict(list)

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: outputs[name].append(output)

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        result = call_example(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    final = {t.data_ptr() for t in _tensors(result)}
    found = []
    for rank, (name, seen) in enumerate(outputs.items()):
        tensor = _slot_tensor(seen[0], name) if len(seen) == 1 else None
        if tensor is None or tensor.data_ptr() in final or _channels(tensor) < LEAST_CHANNELS:
            continue
        found.append(_Candidate(name, model.get_submodule(name), rank, tuple(tensor.shape)))
    return found


def _slot_tensor(output: Any, name: str) -> Tensor | None:
    try:
        key = find_tensor(output, name)
    except ValueError:
        return None
    return output if key is None else dict(items_of(output))[key]


def _tensors(result: Any) -> list[Tensor]:
    members = [result] if isinstance(result, Tensor) else [value for _, value in items_of(result)]
    return [m for m in members if isinstance(m, Tensor)]


def _channels(tensor: Tensor) -> int:
    return tensor.shape[1 if tensor.dim() == 4 else -1]


def _repeated_blocks(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    groups: dict[tuple[str, type], list[_Candidate]] = defaultdict(list)
    for c in candidates:
        if c.is_block:
            groups[c.parent, type(c.module)].append(c)
    repeated = [group for group in groups.values() if len(group) > 1]
    return min(repeated, key=lambda group: (group[0].name.count("."), -len(group)), default=[])


def _activations(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    found = [c for c in candidates if isinstance(c.module, _ACTIVATIONS)]
    return found if len(found) > 1 else []


def _outermost(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Submodules that stand in no other candidate; of those in a row with outputs of one shape, the last."""
    names = {c.name for c in candidates}
    outer = [c for c in candidates if not any(c.name.startswith(f"{name}.") for name in names)]
    outer.sort(key=lambda c: c.rank)
    followed = zip(outer, [*outer[1:], None], strict=True)
    return [c for c, after in followed if c.is_block or after is None or after.shape != c.shape]


def _spread(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """At most :data:`MOST_SLOTS` of them, evenly, the last one included."""
    if len(candidates) <= MOST_SLOTS:
        return list(candidates)
    step = len(candidates) / MOST_SLOTS
    return [candidates[round((i + 1) * step) - 1] for i in range(MOST_SLOTS)]
