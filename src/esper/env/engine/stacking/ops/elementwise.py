"""Rules of functions that work element by element, move axes or reduce them: the same call, one axis further in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from esper.env.engine.stacking.memory_format import doubled, relaid
from esper.env.engine.stacking.stacked_tensor import NoRuleError, Stacked, rule

Function = Callable[..., Any]


def wrap(result: Any) -> Any:
    """Results of a function on tensors inside as stacked values."""
    if isinstance(result, Tensor):
        return Stacked(result)
    return tuple(map(Stacked, result))


def aligned(value: Any, ndim: int) -> Any:
    """The tensor inside, with axes of length 1 after that of the hosts until a host's tensor has ``ndim`` axes."""
    if not isinstance(value, Stacked):
        return value
    data = value.data
    missing = ndim + 1 - data.dim()
    return data if missing <= 0 else data[(slice(None),) + (None,) * missing]


def align(*values: Any) -> list[Any]:
    """The tensors inside of all stacked values, so that they broadcast against each other and against plain ones."""
    ndim = max(value.dim() for value in values if isinstance(value, Stacked | Tensor))
    return _of_one_layout([aligned(value, ndim) for value in values])


def _of_one_layout(values: list[Any]) -> list[Any]:
    """Large tensors of the same shape in the same order of memory: that of the last, which is the newest as a rule.

    A residual stream so takes over the layout that its branches work in, once, instead of being brought to it anew in
    every branch.
    """
    if len(values) != 2 or not all(isinstance(v, Tensor) and v.dim() > 3 for v in values):
        return values
    first, last = values
    if first.shape == last.shape and first.stride() != last.stride() and first.is_floating_point():
        values[0] = relaid(first, last)
    return values


def inward(dim: int, ndim: int) -> int:
    """The axis ``dim`` of a host's tensor with ``ndim`` axes, in the tensor inside."""
    if not -ndim <= dim < ndim:
        raise IndexError(f"axis {dim} is out of range for a tensor with {ndim} axes")
    return dim % ndim + 1


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one or as one sequence."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], Sequence) else sizes


# ---------------------------------------------------------------------------------------------- element by element

_ELEMENTWISE = [
    "abs", "add", "celu", "clamp", "clip", "cos", "div", "elu", "eq", "erf", "exp", "expm1", "floor", "ge", "gelu",
    "gt", "hardsigmoid", "hardswish", "hardtanh", "isfinite", "isinf", "isnan", "le", "leaky_relu", "lerp", "log",
    "log1p", "logical_and", "logical_not", "logical_or", "logsigmoid", "lt", "maximum", "minimum", "mish", "mul",
    "ne", "neg", "pow", "reciprocal", "relu", "relu6", "rsqrt", "rsub", "selu", "sigmoid", "sign", "silu", "sin",
    "softplus", "sqrt", "square", "sub", "tanh", "true_divide", "where", "zeros_like", "ones_like",
]  # fmt: skip
_IN_PLACE = [f"{name}_" for name in _ELEMENTWISE]
"""The tensor inside is changed, as a host's would be."""
_OTHERS = [
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__eq__", "addcmul",
    "masked_fill",
]  # fmt: skip


@rule(*_ELEMENTWISE, *_IN_PLACE, *_OTHERS)
def _elementwise(function: Function, *args: Any, **kwargs: Any) -> Stacked:
    if len(args) == 1:
        return Stacked(function(args[0].data, **kwargs))
    if _is_spread(args) and not function.__name__.endswith("_"):
        beside = [Stacked(doubled(a.data)) if isinstance(a, Stacked) else a for a in args]
        return Stacked(function(*align(*beside), **kwargs)[:1])
    return Stacked(function(*align(*args), **kwargs))


def _is_spread(args: Sequence[Any]) -> bool:
    """Whether a lone host's numbers are spread over a larger tensor of it.

    Their gradient is a sum, which a host alone would take in another order than two do; so they are :func:`doubled`.
    """
    inside = [a for a in args if isinstance(a, Stacked)]
    return torch.is_grad_enabled() and len(inside[0].data) == 1 and len({a.shape for a in inside}) > 1


@rule("contiguous")
def _as_it_is(function: Function, x: Stacked) -> Stacked:
    """Strides are the engine's own affair."""
    return x


@rule("clone", "detach", "double", "float", "to", "type_as")
def _copied(function: Function, x: Stacked, *args: Any, **kwargs: Any) -> Stacked:
    return Stacked(function(x.data, *(aligned(a, 0) for a in args), **kwargs))


@rule("dropout", "feature_dropout", "dropout1d", "dropout2d", "alpha_dropout")
def _dropout(function: Function, x: Stacked, p: float = 0.5, training: bool = True, inplace: bool = False) -> Stacked:
    if training and p > 0:
        raise NoRuleError("dropout draws from each host's own random stream; train such hosts with engine='loop'")
    return x


# ------------------------------------------------------------------------------------------------------ axes


@rule("transpose", "swapaxes", "swapdims")
def _transpose(function: Function, x: Stacked, dim0: int, dim1: int) -> Stacked:
    return Stacked(x.data.transpose(inward(dim0, x.dim()), inward(dim1, x.dim())))


@rule("movedim", "moveaxis")
def _movedim(function: Function, x: Stacked, source: Any, destination: Any) -> Stacked:
    def moved(dims: Any) -> Any:
        return inward(dims, x.dim()) if isinstance(dims, int) else tuple(inward(d, x.dim()) for d in dims)

    return Stacked(x.data.movedim(moved(source), moved(destination)))


@rule("permute")
def _permute(function: Function, x: Stacked, *dims: Any) -> Stacked:
    return Stacked(x.data.permute(0, *(inward(d, x.dim()) for d in _sizes(dims))))


@rule("flatten")
def _flatten(function: Function, x: Stacked, start_dim: int = 0, end_dim: int = -1) -> Stacked:
    return Stacked(x.data.flatten(inward(start_dim, x.dim()), inward(end_dim, x.dim())))


@rule("unflatten")
def _unflatten(function: Function, x: Stacked, dim: int, sizes: Sequence[int]) -> Stacked:
    return Stacked(x.data.unflatten(inward(dim, x.dim()), sizes))


@rule("unsqueeze")
def _unsqueeze(function: Function, x: Stacked, dim: int) -> Stacked:
    return Stacked(x.data.unsqueeze(inward(dim, x.dim() + 1)))


@rule("squeeze")
def _squeeze(function: Function, x: Stacked, dim: int | None = None) -> Stacked:
    dims = range(x.dim()) if dim is None else [dim]
    return Stacked(x.data.squeeze(tuple(inward(d, x.dim()) for d in dims)))


@rule("view", "reshape")
def _reshape(function: Function, x: Stacked, *shape: Any) -> Stacked:
    return Stacked(x.data.reshape(len(x.data), *_sizes(shape)))


@rule("expand")
def _expand(function: Function, x: Stacked, *sizes: Any) -> Stacked:
    wanted = _sizes(sizes)
    return Stacked(aligned(x, len(wanted)).expand(-1, *wanted))


@rule("cat", "concat", "concatenate")
def _cat(function: Function, tensors: Sequence[Any], dim: int = 0) -> Stacked:
    hosts = next(len(t.data) for t in tensors if isinstance(t, Stacked))
    inside = [t.data if isinstance(t, Stacked) else t.expand(hosts, *t.shape) for t in tensors]
    return Stacked(torch.cat(inside, inward(dim, inside[0].dim() - 1)))


@rule("stack")
def _stack(function: Function, tensors: Sequence[Any], dim: int = 0) -> Stacked:
    hosts = next(len(t.data) for t in tensors if isinstance(t, Stacked))
    inside = [t.data if isinstance(t, Stacked) else t.expand(hosts, *t.shape) for t in tensors]
    return Stacked(torch.stack(inside, inward(dim, inside[0].dim())))


@rule("__getitem__")
def _getitem(function: Function, x: Stacked, index: Any) -> Stacked:
    index = index if isinstance(index, tuple) else (index,)
    fancy = sum(not isinstance(i, int | slice | type(None) | type(Ellipsis)) for i in index)
    if fancy > 1 or any(isinstance(i, Stacked) for i in index):
        raise NoRuleError(f"there is no rule for indexing stacked hosts with {index}; train them with engine='loop'")
    return Stacked(x.data[(slice(None), *index)])


@rule("pad")
def _pad(function: Function, x: Stacked, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Stacked:
    if mode != "constant":
        raise NoRuleError(f"there is no rule for padding stacked hosts in mode '{mode}'; train them with engine='loop'")
    return Stacked(torch.nn.functional.pad(x.data, list(pad), value=value))


# ----------------------------------------------------------------------------------- one axis, kept or reduced


@rule("softmax", "log_softmax", "cumsum", "flip", "select", "narrow", "index_select", "unbind", "argsort", "glu")
def _along_leading_argument(function: Function, x: Stacked, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Functions whose first argument after the tensor is an axis."""
    default = {"unbind": 0, "glu": -1}.get(function.__name__)
    dim = default if dim is None else dim
    inner = [inward(d, x.dim()) for d in dim] if isinstance(dim, Sequence) else inward(dim, x.dim())
    return wrap(function(x.data, inner, *args, **kwargs))


@rule("chunk", "split", "tensor_split")
def _divided(function: Function, x: Stacked, sizes: Any, dim: int = 0) -> Any:
    return wrap(function(x.data, sizes, dim=inward(dim, x.dim())))


@rule("mean", "sum", "amax", "amin", "logsumexp", "var", "std", "prod", "argmax", "argmin", "any", "all")
def _reduced(function: Function, x: Stacked, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Stacked:
    if dim is None:
        return Stacked(function(x.data.flatten(1) if x.dim() else x.data[:, None], 1, **kwargs))
    inner = [inward(d, x.dim()) for d in dim] if isinstance(dim, Sequence) else inward(dim, x.dim())
    return Stacked(function(x.data, inner, keepdim=keepdim, **kwargs))
