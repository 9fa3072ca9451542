"""The example that a model is called with, and what it leaves in every submodule when a part of it is another.

Nothing about a slot is read off class names: which dimension holds the samples, which the channels, and whether
positions see later ones is found by disturbing a part of the example and looking at who is changed
(:mod:`esper.network.survey`, :mod:`esper.network.causality`).

The host is only looked at: it runs in evaluation mode without gradients, train flags are restored, and no random state
is moved.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from esper.modes import modes_kept

TOLERANCE = 1e-6
"""A change smaller than this, relative to the largest value of its kind, is rounding."""


# ------------------------------------------------------------------------------------------------- outputs


def items_of(output: Any) -> list[tuple[int | str, Any]]:
    """The top-level members of a tuple, list, mapping or dataclass, by key."""
    if isinstance(output, tuple | list):
        return list(enumerate(output))
    if isinstance(output, Mapping):
        return list(output.items())
    if dataclasses.is_dataclass(output):
        return [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    return []


def tensors_of(output: Any) -> list[tuple[int | str | None, Tensor]]:
    """The tensor that an output is, or those among its members, by key (``None``: the output itself)."""
    members: list[tuple[int | str | None, Any]] = [(None, output), *items_of(output)]
    return [(key, member) for key, member in members if isinstance(member, Tensor)]


@dataclass(frozen=True)
class Print:
    """A tensor's fingerprint: for every dimension one number per index, a weighted sum over everything else there.

    A changed entry changes the number of its index in every dimension, so prints say *where* two tensors differ
    without keeping them.
    """

    shape: tuple[int, ...]
    lines: tuple[Tensor, ...]

    @staticmethod
    def of(tensor: Tensor) -> Print:
        """The fingerprint of a floating tensor."""
        wide = tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)
        lines = []
        for _ in range(tensor.dim()):  # from the last dimension to the first; later ones are summed up already
            rows = wide.reshape(-1, wide.shape[-1])
            lines.append((_weights(len(rows)).to(wide) @ rows).cpu())
            wide = wide @ _weights(wide.shape[-1]).to(wide)
        return Print(tuple(tensor.shape), tuple(reversed(lines)))

    def changes(self, other: Print) -> tuple[Tensor, ...]:
        """For every dimension a bool per index: whether ``other``, a print of the same shape, differs there."""
        found = []
        for ours, theirs in zip(self.lines, other.lines, strict=True):
            # "not within" instead of "beyond": a NaN that was none before is a change
            same = (ours - theirs).abs() <= TOLERANCE * ours.abs().max()
            found.append(~same & ~(ours.isnan() & theirs.isnan()))
        return tuple(found)


def _weights(size: int) -> Tensor:
    """Weights that no sum of a real tensor cancels under: 0.5 to 1.5, irregular, always the same."""
    return _few_weights(size) if size <= 4096 else _irregular(size)


def _irregular(size: int) -> Tensor:
    return 0.5 + (torch.arange(1, size + 1, dtype=torch.float64) * 0.6180339887498949) % 1


_few_weights = lru_cache(maxsize=256)(_irregular)


Key = tuple[str, int | str | None, int]
"""A tensor of a forward pass: path of the submodule (``""``: the model), its key in the output, number of the call."""

Trace = dict[Key, Print]
"""The fingerprints of a forward pass, in order of execution."""


def apart(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> list[int]:
    """The dimensions along which two sets of changes have no index in common, though neither is empty."""
    return [d for d, (a, b) in enumerate(zip(first, second, strict=True)) if a.any() and b.any() and not (a & b).any()]


# ------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Input:
    """One tensor of the example, and the name of the argument that holds it."""

    index: int
    name: str
    tensor: Tensor

    @property
    def can_be_disturbed(self) -> bool:
        """Whether other values are as valid: no mask, nothing infinite."""
        if self.tensor.dtype == torch.bool or self.tensor.numel() == 0 or "mask" in self.name:
            return False
        return bool(self.tensor.isfinite().all())


class Example:
    """A model together with the arguments of one call.

    Args:
        model: The host.
        example_input: A mapping becomes keyword arguments, a tuple or list positional arguments, anything else is the
            one argument.
        samples_dim: Dimension of the inputs that holds the samples, 0 or 1. A single sample is doubled.
    """

    def __init__(self, model: nn.Module, example_input: Any, samples_dim: int = 0) -> None:
        self.model = model
        self.samples_dim = samples_dim
        named = isinstance(example_input, Mapping)
        args = tuple(example_input) if isinstance(example_input, tuple | list) else (example_input,)
        leaves, self._tree = pytree.tree_flatten_with_path(((), dict(example_input)) if named else (args, {}))
        self._leaves = [leaf for _, leaf in leaves]
        parameters = list(inspect.signature(model.forward).parameters)
        self._names = [_argument(path, parameters) for path, _ in leaves]
        self.samples = 0
        """Number of samples; 0 if no input has that dimension."""
        self.doubled = False
        """Whether a single sample was doubled."""
        self._double_a_single_sample()

    def _double_a_single_sample(self) -> None:
        inputs = [i for i in self.inputs if i.tensor.dim() > self.samples_dim]
        if not inputs:
            return
        first = next((i for i in inputs if i.can_be_disturbed), inputs[0])  # a mask may be shared by all samples
        self.samples = first.tensor.shape[self.samples_dim]
        if self.samples == 1:
            self.samples, self.doubled = 2, True
            for i in self.inputs:
                if i.tensor.dim() > self.samples_dim and i.tensor.shape[self.samples_dim] == 1:
                    self._leaves[i.index] = torch.cat([i.tensor, i.tensor], self.samples_dim)

    @property
    def inputs(self) -> list[Input]:
        """The tensors that have dimensions."""
        found = zip(self._names, self._leaves, strict=True)
        return [Input(i, n, leaf) for i, (n, leaf) in enumerate(found) if isinstance(leaf, Tensor) and leaf.dim()]

    def samples_dim_of(self, tensor: Tensor) -> int | None:
        """The dimension of an input that holds the samples; ``None`` if none has as many entries."""
        for dim in (self.samples_dim, 0, 1):
            if dim < tensor.dim() and tensor.shape[dim] == self.samples:
                return dim
        return None

    # --------------------------------------------------------------------------------------------- calls

    def call(self, changed: Mapping[int, Tensor] | None = None, *, grad: bool = False) -> Any:
        """The model's output on the example, with other tensors in place of some inputs."""
        leaves = [(changed or {}).get(index, leaf) for index, leaf in enumerate(self._leaves)]
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        cuda = {p.device for p in self.model.parameters() if p.is_cuda}
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(torch.random.fork_rng(devices=list(cuda)))
            stack.enter_context(modes_kept(self.model))
            stack.enter_context(_without_nested_tensors(self.model))
            self.model.eval()
            return self.model(*args, **kwargs)

    def flops(self) -> int:
        """FLOPs of a forward pass over one sample, as :mod:`torch.utils.flop_counter` counts them."""
        with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.call()
        return counter.get_total_flops() // max(self.samples, 1)

    def trace(
        self,
        changed: Mapping[int, Tensor] | None = None,
        alter: tuple[str, int, Callable[[Tensor], Tensor]] | None = None,
        watch: Callable[[str, nn.Module, Any], None] | None = None,
    ) -> Trace:
        """Fingerprints of what every submodule puts out; what ran before an error, if the model cannot take the change.

        Args:
            changed: Other tensors in place of some inputs.
            alter: (path of a submodule, number of its call, function that changes its output there).
            watch: Called with path, submodule and output of every call; the model runs with gradients then.
        """
        found: Trace = {}
        calls: dict[str, int] = defaultdict(int)

        def note(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                call = calls[name]
                calls[name] += 1
                altered = alter is not None and alter[:2] == (name, call)
                output = alter[2](output) if alter is not None and altered else output
                if watch is not None:
                    watch(name, module, output)
                for key, tensor in tensors_of(output):
                    if _has_a_print(tensor, least_dims=2 if name else 1):
                        found[name, key, call] = Print.of(tensor)
                return output if altered else None

            return hook

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_hook(note(name)).remove)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            try:
                self.call(changed, grad=watch is not None)
            except Exception:  # whatever it is, what ran before it is what there is to see
                if changed is None and alter is None:
                    raise
        return found

    # --------------------------------------------------------------------------------------------- changes

    def with_other_samples(self, first_half: bool) -> dict[int, Tensor]:
        """The inputs with other values in the first or the second half of the samples."""
        half = self.samples // 2
        chosen = slice(None, half) if first_half else slice(half, None)
        return self._others(lambda i: self.samples_dim_of(i.tensor), chosen)

    def with_twice_the_samples(self) -> dict[int, Tensor]:
        """The inputs with every sample twice."""
        dims = {i.index: (i.tensor, self.samples_dim_of(i.tensor)) for i in self.inputs}
        return {index: torch.cat([t, t], dim) for index, (t, dim) in dims.items() if dim is not None}

    def cropped(self) -> Iterator[dict[int, Tensor]]:
        """The inputs with fewer entries in one dimension after the other; whatever else has that size goes along."""
        for i in self.inputs:
            for dim, size in enumerate(i.tensor.shape):
                if size > 1 and dim != self.samples_dim_of(i.tensor):
                    yield {j.index: self._crop(j, size, only=dim if j.index == i.index else None) for j in self.inputs}

    def _crop(self, i: Input, size: int, only: int | None) -> Tensor:
        tensor = i.tensor
        for dim in range(tensor.dim()) if only is None else (only,):
            if tensor.shape[dim] == size and dim != self.samples_dim_of(i.tensor):
                tensor = tensor.narrow(dim, 0, (size + 1) // 2)
        return tensor

    def _others(self, dim_of: Callable[[Input], int | None], chosen: slice) -> dict[int, Tensor]:
        changed = {}
        for i in self.inputs:
            dim = dim_of(i)
            if dim is not None and i.can_be_disturbed:
                changed[i.index] = disturbed(i.tensor, {dim: chosen})
        return changed


def _argument(path: tuple[Any, ...], parameters: list[str]) -> str:
    """Name of the argument at a path like ``[1]['labels']`` (keyword) or ``[0][2]`` (positional)."""
    key = path[1].key if hasattr(path[1], "key") else path[1].idx
    return key if isinstance(key, str) else parameters[min(key, len(parameters) - 1)] if parameters else ""


def disturbed(tensor: Tensor, where: Mapping[int, slice]) -> Tensor:
    """A copy with other values, of the same range, in a part of the tensor (a slice per dimension)."""
    part = tuple(where.get(dim, slice(None)) for dim in range(tensor.dim()))
    changed = tensor.clone()
    changed[part] = _other_values(tensor)[part]
    return changed


def _other_values(tensor: Tensor) -> Tensor:
    """Values that differ everywhere: of integers others that occur (they are surely in the vocabulary)."""
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor.device)
    if tensor.is_complex():
        return tensor + noise
    low, high = tensor.min(), tensor.max()
    if tensor.is_floating_point():
        return (low + (high - low + (low == high)) * noise).to(tensor.dtype)
    if low == high:
        return torch.zeros_like(tensor) if low != 0 else torch.ones_like(tensor)
    values, place = torch.unique(tensor, return_inverse=True)
    step = 1 + (noise * (len(values) - 1)).long().clamp(max=len(values) - 2)
    return values[(place + step) % len(values)]


def _has_a_print(tensor: Tensor, least_dims: int) -> bool:
    if tensor.is_nested or not tensor.is_floating_point():
        return False
    return tensor.dim() >= least_dims and tensor.numel() > 0


def encoders_around(model: nn.Module, slots: Iterable[str]) -> list[nn.TransformerEncoder]:
    """The encoders with a slot inside that, in evaluation, turn a padded batch into nested tensors."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.TransformerEncoder) and m.use_nested_tensor]
    return [encoder for n, encoder in found if any(slot.startswith(f"{n}." if n else "") for slot in slots)]


@contextmanager
def _without_nested_tensors(model: nn.Module) -> Iterator[None]:
    encoders = encoders_around(model, [name for name, _ in model.named_modules()])
    for encoder in encoders:
        encoder.use_nested_tensor = False
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.use_nested_tensor = True


# ------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Samples:
    """Which tensors of a forward pass hold which samples.

    Args:
        example: The example, in the order of samples that fits the model.
        plain: The example as it is.
        changes: For every tensor, who is changed by other values in the first half of the samples, and in the second.
    """

    example: Example
    plain: Trace
    changes: dict[Key, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]

    def dims(self, key: Key) -> list[int]:
        """The dimensions of a tensor along which it keeps the two halves of the samples apart."""
        return apart(*self.changes[key]) if key in self.changes else []

    def depends(self, key: Key) -> bool:
        """Whether a tensor depends on the samples at all."""
        return key in self.changes and any(half.any() for half in (self.changes[key][0][0], self.changes[key][1][0]))

    def mixed(self, key: Key) -> bool:
        """Whether a tensor depends on both halves and keeps them apart in no dimension."""
        return key in self.changes and all(half[0].any() for half in self.changes[key]) and not self.dims(key)

    @property
    def complete(self) -> bool:
        """Whether the model ran to its end on the disturbed examples too."""
        return len(self.changes) == len(self.plain)

    @property
    def num_mixed(self) -> int:
        """Number of tensors that mix samples."""
        return sum(map(self.mixed, self.changes))


def find_samples(model: nn.Module, example_input: Any) -> Samples:
    """Which dimension of the example holds the samples: the first, or the second (``[L, N, C]``).

    The one in which fewer tensors of the model mix different indices; the first where both are alike, as in a model
    that treats every position of a sequence by itself.

    Raises:
        ValueError: If the example holds a single sample, and the model cannot take two of it.
    """
    first = Example(model, example_input)
    try:
        found = _compare_halves(first)
    except Exception as error:
        if not first.doubled:
            raise
        found, why = None, error
    if found is not None and found.num_mixed == 0:
        return found
    second = Example(model, example_input, samples_dim=1)
    if second.samples:
        try:
            other = _compare_halves(second)
        except Exception:
            other = None
        if other is not None and other.complete and other.num_mixed < (1 if found is None else found.num_mixed):
            return other
    if found is None:
        raise ValueError(
            f"the example holds one sample, and {type(model).__name__} does not run with two of it "
            f"({type(why).__name__}: {why}); give an example_input of two samples or more"
        ) from why
    return found


def _compare_halves(example: Example) -> Samples:
    plain = example.trace()
    if not example.samples:
        return Samples(example, plain, {})
    halves = [example.trace(example.with_other_samples(first)) for first in (True, False)]
    changes = {
        key: (before.changes(halves[0][key]), before.changes(halves[1][key]))
        for key, before in plain.items()
        if all(key in half and half[key].shape == before.shape for half in halves)
    }
    return Samples(example, plain, changes)
