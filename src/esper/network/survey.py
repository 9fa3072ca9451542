"""Where slots are: from names to submodules, and from one example forward to what each of them carries.

A :class:`Port` takes the slot's tensor out of a submodule's output and puts another one back.
The host is only looked at: the example runs in evaluation mode without gradients, train flags are restored, and no
random state is moved.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from esper.network.blueprints import Kind, SlotSpec

_KIND_OF_DIMS: dict[int, Kind] = {2: "vector", 3: "sequence", 4: "image"}

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


# ---------------------------------------------------------------------------------------------------- names


def resolve_slots(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The submodules that ``names`` name, in that order.

    A name is a submodule's path as in ``model.named_modules()``; ``*``, ``?`` and ``[...]`` match within one part of a
    path, so ``"layer*"`` is layer1 and layer2 but not layer1.0, and ``"h.*.mlp"`` is the mlp of every block.

    Raises:
        ValueError: For a name that matches nothing (with the nearest names), or no names at all.
    """
    if isinstance(names, str):
        raise ValueError(f"expected a list of slot names, got the string {names!r}; write [{names!r}]")
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found: dict[str, None] = {}
    for name in names:
        matches = [k for k in known if _matches(k, name)]
        if not matches:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(known[:8])}, …"
            raise ValueError(f"slot {name!r} is not a submodule of {type(model).__name__}; {hint}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise ValueError("expected at least one slot name, got none; name submodules as in model.named_modules()")
    return list(found)


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


# ---------------------------------------------------------------------------------------------------- ports


@dataclasses.dataclass(frozen=True)
class Port:
    """Takes the slot's tensor out of a submodule's output, in the layout of its kind, and puts another one back.

    Args:
        key: Where the tensor stands: ``None`` (the output is the tensor), an index (tuple, list) or a name (mapping,
            dataclass).
        swap_channels: The submodule's layout is not that of the kind: channels first for sequences, last for images.
    """

    key: int | str | None = None
    swap_channels: bool = False

    def describe(self) -> str:
        """Where the tensor stands, in words."""
        where = {None: "output", int: f"output[{self.key}]", str: f"output.{self.key}"}
        layout = " with its channels moved" if self.swap_channels else ""
        return where[None if self.key is None else type(self.key)] + layout

    def read(self, output: Any) -> Tensor:
        """The slot's tensor, in the layout of its kind (a view)."""
        tensor = output if self.key is None else _get(output, self.key)
        return _swap_channels(tensor, inward=True) if self.swap_channels else tensor

    def write(self, output: Any, tensor: Tensor) -> Any:
        """A copy of ``output`` that holds ``tensor`` (given in the layout of its kind)."""
        if self.swap_channels:
            tensor = _swap_channels(tensor, inward=False)
        return tensor if self.key is None else _replace(output, self.key, tensor)


def _swap_channels(tensor: Tensor, *, inward: bool) -> Tensor:
    """Sequences ``[N, C, L]`` ↔ ``[N, L, C]``; images ``[N, H, W, C]`` ↔ ``[N, C, H, W]``."""
    if tensor.dim() == 3:
        return tensor.transpose(1, 2)
    return tensor.movedim(-1, 1) if inward else tensor.movedim(1, -1)


def items_of(output: Any) -> list[tuple[int | str, Any]]:
    """The top-level members of a tuple, list, mapping or dataclass, by key."""
    if isinstance(output, tuple | list):
        return list(enumerate(output))
    if isinstance(output, Mapping):
        return list(output.items())
    if dataclasses.is_dataclass(output):
        return [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    return []


def _get(output: Any, key: int | str) -> Tensor:
    return getattr(output, str(key)) if dataclasses.is_dataclass(output) else output[key]


def _replace(output: Any, key: int | str, value: Tensor) -> Any:
    if isinstance(output, tuple | list):
        members = [value if i == key else member for i, member in enumerate(output)]
        return output._make(members) if hasattr(output, "_make") else type(output)(members)
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[key] = value
        return changed
    return dataclasses.replace(output, **{str(key): value})


def _is_slot_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() in _KIND_OF_DIMS


def find_tensor(output: Any, slot: str) -> int | str | None:
    """Key of the slot's tensor in a submodule's output: the first floating tensor of 2 to 4 dimensions.

    Raises:
        ValueError: If there is none, or if a second one has the same shape, so that either could be meant.
    """
    if _is_slot_tensor(output):
        return None
    found = [(key, value) for key, value in items_of(output) if _is_slot_tensor(value)]
    if not found:
        got = f"a tensor {tuple(output.shape)} of {output.dtype}" if isinstance(output, Tensor) else _outline(output)
        raise ValueError(
            f"slot '{slot}' must output a floating tensor [N, C], [N, L, C] or [N, C, H, W], alone or in a tuple, "
            f"mapping or dataclass; got {got}. Name another submodule."
        )
    key, tensor = found[0]
    twins = [k for k, value in found[1:] if value.shape == tensor.shape]
    if twins:
        raise ValueError(
            f"slot '{slot}' outputs several tensors of shape {tuple(tensor.shape)} (at {key!r} and {twins}), so it is "
            "not clear which one should grow; name a submodule inside it that outputs the one you mean"
        )
    return key


def _outline(output: object) -> str:
    return f"{type(output).__name__} with {[(k, type(v).__name__) for k, v in items_of(output)]}"


# ------------------------------------------------------------------------------------------- example forward


@dataclasses.dataclass(frozen=True)
class Site:
    """What one example forward found out about a slot.

    Args:
        name: Path of the submodule.
        module: The submodule.
        port: Where its tensor is.
        spec: What it carries.
        depth: Place among the slots in the order of execution, 0 (first) to 1 (last).
        device: Device of the slot's tensor.
        dtype: Dtype of the slot's tensor.
    """

    name: str
    module: nn.Module
    port: Port
    spec: SlotSpec
    depth: float
    device: torch.device
    dtype: torch.dtype


def survey(model: nn.Module, names: Sequence[str], example_input: Any, *, causal: bool | None) -> list[Site]:
    """Run the example once (twice more to find out about causality) and say what each slot carries.

    Args:
        model: The host.
        names: Paths of the slots (see :func:`resolve_slots`).
        example_input: What the model is called with: a mapping becomes keyword arguments, a tuple or list becomes
            positional arguments, anything else is the one argument.
        causal: Whether sequence slots must be causal. ``None`` finds out: if the model's output is per position and its
            earlier positions do not change when the last position of the input does, they must.

    Raises:
        ValueError: If a slot does not run or runs twice, or holds no (or no single) tensor of a known form.
    """
    outputs, swapped, result = _run_example(model, names, example_input)
    sites = []
    order = {name: rank for rank, name in enumerate(outputs)}
    for name in names:
        port = Port(find_tensor(outputs[name], name))
        port = dataclasses.replace(port, swap_channels=_has_foreign_layout(port.read(outputs[name]), swapped[name]))
        h = port.read(outputs[name])
        spec = _spec_of(h, name)
        depth = order[name] / max(len(names) - 1, 1)
        sites.append(Site(name, model.get_submodule(name), port, spec, depth, h.device, h.dtype))
    return [
        dataclasses.replace(site, spec=_with_causality(site.spec, c))
        for site, c in zip(sites, _causality(model, sites, example_input, result, causal), strict=True)
    ]


def _spec_of(h: Tensor, name: str) -> SlotSpec:
    if 0 in h.shape:
        raise ValueError(
            f"slot '{name}' outputs an empty tensor {tuple(h.shape)} on the example; give one sample or more"
        )
    kind = _KIND_OF_DIMS[h.dim()]
    if kind == "image":
        return SlotSpec(kind, h.shape[1], tuple(h.shape[2:]))
    return SlotSpec(kind, h.shape[-1], tuple(h.shape[1:-1]))


@dataclasses.dataclass
class _Layout:
    """The layout that the last layer with one of its own left behind."""

    dims: int
    channels: int
    first: bool


def _run_example(
    model: nn.Module, names: Sequence[str], example_input: Any
) -> tuple[dict[str, Any], dict[str, _Layout | None], Any]:
    """The output of every slot in order of execution, the layout at that point, and the model's output."""
    outputs: dict[str, Any] = {}
    layouts: dict[str, _Layout | None] = {}
    latest: list[_Layout | None] = [None]

    def note_layout(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) and output else output
        if isinstance(tensor, Tensor) and tensor.dim() in (3, 4):
            first = isinstance(module, _CHANNELS_FIRST)
            latest[0] = _Layout(tensor.dim(), tensor.shape[1 if first else -1], first)

    def note_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name in outputs:
                raise ValueError(
                    f"slot '{name}' runs more than once in a forward pass, so its output is not one place in the "
                    "network; name a submodule that runs once"
                )
            outputs[name], layouts[name] = output, latest[0]

        return hook

    layers = [m for m in model.modules() if isinstance(m, _CHANNELS_FIRST + _CHANNELS_LAST)]
    handles = [layer.register_forward_hook(note_layout) for layer in layers]
    handles += [model.get_submodule(name).register_forward_hook(note_output(name)) for name in names]
    try:
        result = call_example(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in names if name not in outputs]
    if idle:
        raise ValueError(
            f"slot(s) {idle} did not run in the example forward pass (a container such as ModuleList never does); "
            "name submodules that are called"
        )
    return outputs, layouts, result


def _has_foreign_layout(tensor: Tensor, layout: _Layout | None) -> bool:
    """Whether the channels stand where the kind does not expect them: ``[N, C, L]`` or ``[N, H, W, C]``."""
    if layout is None or tensor.dim() == 2 or tensor.dim() != layout.dims:
        return False
    native_first = tensor.dim() == 4
    return layout.first != native_first and tensor.shape[1 if layout.first else -1] == layout.channels


def call_example(model: nn.Module, example_input: Any) -> Any:
    """The model's output on the example: evaluation mode, no gradients, no random state moved."""
    cuda = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=list(cuda)), _evaluation_mode(model):
        if isinstance(example_input, Mapping):
            return model(**example_input)
        if isinstance(example_input, tuple | list):
            return model(*example_input)
        return model(example_input)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


# ------------------------------------------------------------------------------------------------- causality


def _with_causality(spec: SlotSpec, causal: bool) -> SlotSpec:
    return dataclasses.replace(spec, causal=causal and spec.kind == "sequence")


def _causality(
    model: nn.Module, sites: Sequence[Site], example_input: Any, result: Any, causal: bool | None
) -> list[bool]:
    """For each slot whether it must be causal."""
    if causal is not None:
        return [causal] * len(sites)
    lengths = {site.spec.positions for site in sites if site.spec.kind == "sequence"}
    found = {length: _is_causal(model, example_input, result, length) for length in lengths}
    return [found.get(site.spec.positions, False) for site in sites]


def _is_causal(model: nn.Module, example_input: Any, result: Any, length: int) -> bool:
    """Whether the output is per position and a change of the last input position changes the last output only."""
    before = _positions_of(result, length)
    disturbed = _disturb_last_position(example_input, length)
    if before is None or disturbed is None or length < 2:
        return False
    after = _positions_of(call_example(model, disturbed), length)
    if after is None or after.shape != before.shape:
        return False
    change = (after - before).abs().float()
    tolerance = 1e-6 * float(before.abs().max())
    return float(change[:, :-1].max()) <= tolerance < float(change[:, -1].max())


def _positions_of(result: Any, length: int) -> Tensor | None:
    """The first floating tensor of a model's output as ``[N, L, ...]``, if it has ``length`` positions."""
    members = [result] if isinstance(result, Tensor) else [value for _, value in items_of(result)]
    for tensor in members:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() >= 2:
            if tensor.shape[1] == length:
                return tensor
            return tensor.movedim(-1, 1) if tensor.shape[-1] == length else None
    return None


def _disturb_last_position(example_input: Any, length: int) -> Any:
    """The example with another value at the last position of its first tensor; ``None`` without such a tensor."""
    if isinstance(example_input, Tensor):
        return _disturb(example_input, length) if example_input.dim() >= 2 else None
    for key, value in items_of(example_input):
        if isinstance(value, Tensor) and value.dim() >= 2:
            return _replace(example_input, key, _disturb(value, length))
    return None


def _disturb(tensor: Tensor, length: int) -> Tensor:
    changed = tensor.clone()
    axis = -1 if tensor.shape[1] != length and tensor.shape[-1] == length else 1
    last = changed.select(axis, -1)
    if tensor.is_floating_point():
        last.copy_(1 - last)
    else:  # another token that is surely in the vocabulary: 0, or where it is 0 the largest one seen
        last.copy_(torch.where(last == 0, tensor.max().clamp(min=1), torch.zeros_like(last)))
    return changed
