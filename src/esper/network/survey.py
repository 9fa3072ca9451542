"""Where slots are: from names to submodules, and from one example to what each of them carries.

A :class:`Port` takes the slot's tensor out of a submodule's output and puts another one back.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.network.blueprints import Kind, SlotSpec
from esper.network.causality import Streams
from esper.network.example import Key, Samples, Trace, find_samples, items_of
from esper.network.host_call import Padding

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

    The layouts of the kinds are ``[N, C]``, ``[N, L, C]`` and ``[N, C, H, W]``.

    Args:
        key: Where the tensor stands: ``None`` (the output is the tensor), an index (tuple, list) or a name (mapping,
            dataclass).
        dims: The submodule's dimensions in the order of the kind, ``(1, 0, 2)`` for ``[L, N, C]``; empty for those of
            the kind itself.
    """

    key: int | str | None = None
    dims: tuple[int, ...] = ()

    @property
    def is_permuted(self) -> bool:
        """Whether the submodule's layout is not that of the kind."""
        return self.dims != tuple(range(len(self.dims)))

    def describe(self) -> str:
        """Where the tensor stands, in words."""
        where = {None: "output", int: f"output[{self.key}]", str: f"output.{self.key}"}
        moved = ""
        if self.is_permuted:
            moved = (
                " with its channels moved" if self.dims[0] == 0 else f" with its samples in dimension {self.dims[0]}"
            )
        return where[None if self.key is None else type(self.key)] + moved

    def read(self, output: Any) -> Tensor:
        """The slot's tensor, in the layout of its kind (a view); as it is if it has another number of dimensions."""
        tensor = output if self.key is None else _get(output, self.key)
        return tensor.permute(self.dims) if self.is_permuted and tensor.dim() == len(self.dims) else tensor

    def write(self, output: Any, tensor: Tensor) -> Any:
        """A copy of ``output`` that holds ``tensor`` (given in the layout of its kind)."""
        if self.is_permuted:
            tensor = tensor.permute([self.dims.index(d) for d in range(len(self.dims))])
        return tensor if self.key is None else _replace(output, self.key, tensor)


def canonical(dims: int, samples: int, channels: int) -> tuple[int, ...]:
    """The dimensions of a tensor in the order of its kind, by the place of its samples and channels."""
    spatial = [d for d in range(dims) if d not in (samples, channels)]
    return (samples, channels, *spatial) if dims == 4 else (samples, *spatial, channels)


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


# ---------------------------------------------------------------------------------------------------- sites


@dataclasses.dataclass(frozen=True)
class Site:
    """What the example found out about a slot.

    Args:
        name: Path of the submodule.
        module: The submodule.
        port: Where its tensor is.
        spec: What it carries.
        padding: What says which of its positions are padding, if anything does.
        depth: Place among the slots in the order of execution, 0 (first) to 1 (last).
        device: Device of the slot's tensor.
        dtype: Dtype of the slot's tensor.
    """

    name: str
    module: nn.Module
    port: Port
    spec: SlotSpec
    padding: Padding | None
    depth: float
    device: torch.device
    dtype: torch.dtype


class Surveyed(NamedTuple):
    """What one example shows of a host."""

    sites: list[Site]
    """What each slot carries."""
    host_flops: int
    """FLOPs of a forward pass of the host over one sample, as :mod:`torch.utils.flop_counter` counts them."""


def survey(model: nn.Module, names: Sequence[str], example_input: Any, *, causal: bool | None) -> Surveyed:
    """Say what each slot carries, by running the example and disturbing parts of it.

    Args:
        model: The host.
        names: Paths of the slots (see :func:`resolve_slots`).
        example_input: What the model is called with: a mapping becomes keyword arguments, a tuple or list becomes
            positional arguments, anything else is the one argument.
        causal: Whether sequence slots must be causal. ``None`` finds out (:mod:`esper.network.causality`).

    Raises:
        ValueError: If a slot does not run or runs twice, holds no (or no single) tensor of a known form, mixes samples
            or does not depend on them, or if it cannot be told where its channels are or whether it may look ahead.
    """
    surveyor = Surveyor(model, example_input)
    order = surveyor.in_order_of_execution(names)
    sites = [surveyor.site(name, order.index(name) / max(len(names) - 1, 1), causal) for name in names]
    return Surveyed(sites, surveyor.host_flops)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The layout that the last layer with one of its own left behind."""

    dims: int
    channels: int
    channels_dim: int


class Surveyor:
    """One example forward with all that it shows, and the disturbed ones that follow from it.

    Args:
        model: The host.
        example_input: What it is called with.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        _refuse(model)
        self.model = model
        self.samples: Samples = find_samples(model, example_input)
        self._first_names: dict[nn.Module, str] = {}
        for alias, module in model.named_modules(remove_duplicate=False):
            self._first_names.setdefault(module, alias)
        self.outputs: dict[str, list[Any]] = {}
        """What every submodule put out, a list by call, in the order of first calls."""
        self._layouts: dict[str, _Layout | None] = {}
        self._without_gradients: set[str] = set()
        latest: _Layout | None = None

        def watch(name: str, module: nn.Module, output: Any) -> None:
            nonlocal latest
            latest = _layout_of(module, output) or latest
            self._layouts[name] = latest
            self.outputs.setdefault(name, []).append(output)
            if not torch.is_grad_enabled():
                self._without_gradients.add(name)

        self.samples.example.trace(watch=watch)
        self.host_flops = self.samples.example.flops()
        self._streams = Streams(self.samples)
        self._spatial: dict[Key, set[int]] | None = None
        self._twice: Trace | None = None

    def in_order_of_execution(self, names: Sequence[str]) -> list[str]:
        """``names`` in the order in which the submodules end their work.

        Raises:
            ValueError: If some are never called.
        """
        ranks = {name: rank for rank, name in enumerate(self.outputs)}
        idle = [name for name in names if self._first_name(name) not in ranks]
        if idle:
            raise ValueError(
                f"slot(s) {idle} did not run in the example forward pass (a container such as ModuleList never does); "
                "name submodules that are called"
            )
        return sorted(names, key=lambda name: ranks[self._first_name(name)])

    def _first_name(self, name: str) -> str:
        """The path under which a submodule stands in traces; it may have several."""
        return self._first_names[self.model.get_submodule(name)]

    def site(self, name: str, depth: float, causal: bool | None) -> Site:
        """What a slot carries.

        Raises:
            ValueError: As :func:`survey` says.
        """
        first_name = self._first_name(name)
        if len(self.outputs[first_name]) > 1:
            raise ValueError(
                f"slot '{name}' runs more than once in a forward pass, so its output is not one place in the "
                "network; name a submodule that runs once"
            )
        if first_name in self._without_gradients:
            raise ValueError(
                f"slot '{name}' runs without gradients (the model calls it under torch.no_grad() or the like), so a "
                "seed there could never learn; name a submodule that the loss reaches, or take no_grad off"
            )
        output = self.outputs[first_name][0]
        key = find_tensor(output, name)
        tensor = output if key is None else _get(output, key)
        if 0 in tensor.shape:
            raise ValueError(
                f"slot '{name}' outputs an empty tensor {tuple(tensor.shape)} on the example; give one sample or more"
            )
        place = (first_name, key, 0)
        samples = self._samples_dim(name, place, tensor)
        channels = self._channels_dim(name, place, tensor, samples)
        port = Port(key, canonical(tensor.dim(), samples, channels))
        h = port.read(output)
        spec, padding = _spec_of(h), None
        if spec.kind == "sequence":
            looks_back = self._streams.is_causal(name, place, port.dims[1]) if causal is None else causal
            spec = dataclasses.replace(spec, causal=looks_back)
            padding = self._streams.padding(place, port.dims[1])
        return Site(name, self.model.get_submodule(name), port, spec, padding, depth, h.device, h.dtype)

    # ------------------------------------------------------------------------------------- samples of a slot

    def _samples_dim(self, name: str, place: Key, tensor: Tensor) -> int:
        """The dimension of a slot's tensor that holds the samples."""
        if not self.samples.example.samples:
            return 0
        dims = self.samples.dims(place)
        if len(dims) == 1:
            return dims[0]
        grown = self._dims_that_grow_with_the_samples(place, tensor)
        if not grown:
            raise ValueError(
                f"slot '{name}' outputs the same tensor {tuple(tensor.shape)} whatever the samples are (a weight, or "
                "an embedding of positions); name a submodule whose output depends on the model's input"
            )
        if tensor.dim() == 2:  # whatever depends on what: a seed treats every row by itself
            return grown[0]
        if self.samples.mixed(place) or len(grown) > 1:
            raise ValueError(
                f"slot '{name}' outputs a tensor {tuple(tensor.shape)} in which the samples of a batch depend on each "
                "other, so that a seed there would mix them too; name a submodule before the samples meet"
            )
        return grown[0]

    def _dims_that_grow_with_the_samples(self, place: Key, tensor: Tensor) -> list[int]:
        if self._twice is None:
            example = self.samples.example
            self._twice = example.trace(example.with_twice_the_samples())
        if place not in self._twice:
            return self.samples.dims(place)[:1] or [0]
        return [d for d, size in enumerate(self._twice[place].shape) if size == 2 * tensor.shape[d]]

    # ------------------------------------------------------------------------------------- channels of a slot

    def _channels_dim(self, name: str, place: Key, tensor: Tensor, samples: int) -> int:
        """The dimension of a slot's tensor that holds the channels.

        Certain is what the last layer with a layout of its own says, if no other dimension has as many entries. Else
        the positions are those dimensions that shrink with the example's.
        """
        others = [d for d in range(tensor.dim()) if d != samples]
        native = others[0] if tensor.dim() == 4 else others[-1]
        if len(others) == 1:
            return native
        layout = self._layouts[place[0]]
        alike: list[int] = []
        if layout is not None and layout.dims == tensor.dim():
            alike = [d for d in others if tensor.shape[d] == layout.channels]
            if alike == [layout.channels_dim]:
                return layout.channels_dim
        fixed = [d for d in others if d not in self._dims_that_shrink(place)]
        if len(fixed) == 1:
            return fixed[0]
        if len(alike) <= 1:
            return alike[0] if alike else native
        raise ValueError(
            f"slot '{name}' outputs {tuple(tensor.shape)} on the example, and it cannot be told which of the "
            f"dimensions {alike} holds the channels; give an example_input of another size, so that they differ"
        )

    def _dims_that_shrink(self, place: Key) -> set[int]:
        """The dimensions of a tensor that have fewer entries when some dimension of the input has."""
        if self._spatial is None:
            self._spatial = defaultdict(set)
            example, plain = self.samples.example, self.samples.plain
            for inputs in example.cropped():
                for at, cropped in example.trace(inputs).items():
                    if at in plain and len(plain[at].shape) == len(cropped.shape):
                        sizes = enumerate(zip(plain[at].shape, cropped.shape, strict=True))
                        self._spatial[at] |= {d for d, (before, after) in sizes if after < before}
        return self._spatial.get(place, set())


def _refuse(model: nn.Module) -> None:
    """Raise for models that cannot grow whatever the slots are."""
    scripted = [name or "the model" for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise ValueError(
            f"{scripted[0]} is scripted or traced (torch.jit), which fixes its code, so nothing can grow in it; give "
            "the module that it was made of, and export the grown model by growth.export()"
        )
    complex_weights = [name for name, p in model.named_parameters() if p.is_complex()]
    if complex_weights:
        raise ValueError(
            f"the parameter {complex_weights[0]} is complex, and seeds and what is measured of gradients are real; "
            "keep its real and imaginary parts in one real parameter (torch.view_as_complex inside the model)"
        )


def _layout_of(module: nn.Module, output: Any) -> _Layout | None:
    """The layout of a layer's output, if it is PyTorch's own layer (a subclass may permute what it likes)."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(tensor, Tensor) or tensor.dim() not in (3, 4):
        return None
    for layers, dim in ((_CHANNELS_FIRST, 1), (_CHANNELS_LAST, tensor.dim() - 1)):
        if isinstance(module, layers) and type(module).__module__.startswith("torch.nn."):
            if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
                return None
            return _Layout(tensor.dim(), tensor.shape[dim], dim)
    return None


def _spec_of(h: Tensor) -> SlotSpec:
    kind = _KIND_OF_DIMS[h.dim()]
    if kind == "image":
        return SlotSpec(kind, h.shape[1], tuple(h.shape[2:]))
    return SlotSpec(kind, h.shape[-1], tuple(h.shape[1:-1]))
