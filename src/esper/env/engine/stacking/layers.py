"""Rules of layers: dense maps as batched products, convolutions and norms with the hosts folded into the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.env.engine.stacking.rules import align, wrap
from esper.env.engine.stacking.values import NoRuleError, Stacked, rule

Function = Callable[..., Any]


# ------------------------------------------------------------------------------------------------ dense maps


@rule("linear")
def _linear(function: Function, x: Any, weight: Stacked, bias: Stacked | None = None) -> Stacked:
    """``[K, ..., C]`` by ``[K, C', C]``: one batched product. An input that all hosts share is not copied."""
    hosts = len(weight.data)
    data = x.data if isinstance(x, Stacked) else x.expand(hosts, *x.shape)
    rows = data if data.dim() == 3 else data.reshape(hosts, -1, data.shape[-1])
    if bias is None:
        product = torch.bmm(rows, weight.data.mT)
    else:
        product = torch.baddbmm(bias.data[:, None], rows, weight.data.mT)
    return Stacked(product.view(*data.shape[:-1], product.shape[-1]))


@rule("matmul", "__matmul__", "__rmatmul__", "bmm")
def _matmul(function: Function, a: Any, b: Any) -> Stacked:
    if min(a.dim(), b.dim()) < 2:
        raise NoRuleError("there is no rule for products with a stacked vector; train such hosts with engine='loop'")
    return Stacked(torch.matmul(*align(a, b)))


@rule("embedding")
def _embedding(
    function: Function, input: Any, weight: Any, padding_idx: int | None = None, *args: Any, **kwargs: Any
) -> Stacked:
    """Every host looks its own tokens up in its own table ``[V, C]``: one gather from all tables, ``[K·V, C]``."""
    if any(args) or any(kwargs.values()):
        raise NoRuleError("only plain embeddings have a rule for stacked hosts; train others with engine='loop'")
    if not isinstance(weight, Stacked):
        return Stacked(F.embedding(input.data, weight, padding_idx))
    hosts, vocabulary, channels = weight.data.shape
    first = torch.arange(hosts, device=weight.device) * vocabulary
    if isinstance(input, Stacked):
        tokens = input.data + first.view(-1, *(1,) * input.dim())
    else:
        tokens = input + first.view(-1, *(1,) * input.dim())
    if padding_idx is not None:
        raise NoRuleError("embeddings with a padding index have no rule for stacked hosts; use engine='loop'")
    return Stacked(F.embedding(tokens, weight.data.reshape(hosts * vocabulary, channels)))


@rule("scaled_dot_product_attention")
def _attention(function: Function, query: Stacked, key: Stacked, value: Stacked, *args: Any, **kwargs: Any) -> Stacked:
    """The hosts join the samples. A mask is plain, one for all hosts."""
    if kwargs.get("dropout_p", args[1] if len(args) > 1 else 0.0):
        raise NoRuleError("dropout draws from each host's own random stream; train such hosts with engine='loop'")
    if any(isinstance(a, Stacked) for a in (*args, *kwargs.values())):
        raise NoRuleError("there is no rule for attention masks that differ between hosts; use engine='loop'")
    hosts = len(query.data)
    mixed = function(*(x.data.flatten(0, 1) for x in (query, key, value)), *args, **kwargs)
    return Stacked(mixed.unflatten(0, (hosts, -1)))


# --------------------------------------------------------------------------------------- hosts folded into channels


def is_folded(x: Tensor) -> bool:
    """Whether the memory of ``[K, N, C, ...]`` lies as ``[N, K, C, ...]``, so that K and C fold for nothing."""
    return x.stride(0) < x.stride(1)


def fold(x: Tensor) -> Tensor:
    """``[K, N, C, ...]`` → ``[N, K·C, ...]``."""
    return x.transpose(0, 1).flatten(1, 2)


def unfold(x: Tensor, hosts: int) -> Tensor:
    """``[N, K·C, ...]`` → ``[K, N, C, ...]``, a view."""
    return x.unflatten(1, (hosts, -1)).transpose(0, 1)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    function: Function,
    input: Any,
    weight: Stacked,
    bias: Stacked | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Stacked:
    """One convolution with K times the groups; an input that all hosts share needs no groups for them."""
    hosts = len(weight.data)
    if isinstance(input, Stacked):
        folded, all_groups = fold(input.data), hosts * groups
    elif groups == 1:
        folded, all_groups = input, 1
    else:
        folded, all_groups = input.repeat(1, hosts, *(1,) * (input.dim() - 2)), hosts * groups
    bias_data = None if bias is None else bias.data.reshape(-1)
    result = function(folded, weight.data.flatten(0, 1), bias_data, stride, padding, dilation, all_groups)
    return Stacked(unfold(result, hosts))


@rule(
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "interpolate", "pixel_shuffle", "pixel_unshuffle",
)  # fmt: skip
def _pooled(function: Function, input: Stacked, *args: Any, **kwargs: Any) -> Stacked:
    """Channels are pooled one by one, so hosts may join channels or samples, whichever costs nothing."""
    hosts = len(input.data)
    if is_folded(input.data) and "pixel" not in function.__name__:
        return Stacked(unfold(function(fold(input.data), *args, **kwargs), hosts))
    return Stacked(function(input.data.flatten(0, 1), *args, **kwargs).unflatten(0, (hosts, -1)))


# ----------------------------------------------------------------------------------------------------- norms


@rule("layer_norm", "rms_norm")
def _layer_norm(
    function: Function,
    input: Stacked,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float | None = None,
) -> Stacked:
    """Normalised without weights, which each host then puts on for itself."""
    default = 1e-5 if function.__name__ == "layer_norm" else None
    settings = {"eps": default if eps is None else eps}
    if not isinstance(weight, Stacked):
        return Stacked(function(input.data, tuple(normalized_shape), weight, **settings))
    normed = Stacked(function(input.data, tuple(normalized_shape), **settings))
    inside, w = align(normed, weight)
    return Stacked(inside * w) if bias is None else Stacked(torch.addcmul(align(normed, bias)[1], inside, w))


@rule("group_norm")
def _group_norm(
    function: Function,
    input: Stacked,
    num_groups: int,
    weight: Stacked | None = None,
    bias: Stacked | None = None,
    eps: float = 1e-5,
) -> Stacked:
    """K times the groups over K times the channels."""
    hosts = len(input.data)
    flat = [None if p is None else p.data.reshape(-1) for p in (weight, bias)]
    return Stacked(unfold(F.group_norm(fold(input.data), hosts * num_groups, *flat, eps=eps), hosts))


# ----------------------------------------------------------------------------------------------- loss and score


@rule("cross_entropy")
def _cross_entropy(
    function: Function, input: Stacked, target: Any, weight: Tensor | None = None, *args: Any, **kwargs: Any
) -> Stacked:
    """Mean over a host's samples (and positions), ``[K]``."""
    if args or kwargs.get("reduction", "mean") != "mean" or weight is not None:
        raise NoRuleError("only the mean cross entropy without class weights has a rule; use engine='loop'")
    logits = input.data if input.dim() == 2 else input.data.movedim(2, -1)
    targets = target.data if isinstance(target, Stacked) else target.expand(logits.shape[:-1])
    kwargs["reduction"] = "none"
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **kwargs)
    return Stacked(losses.view(len(logits), -1).mean(1))


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
def _elementwise_loss(function: Function, input: Any, target: Any, reduction: str = "mean", **kwargs: Any) -> Any:
    """Mean or sum over a host's elements, ``[K]``."""
    losses = wrap(function(*torch.broadcast_tensors(*align(input, target)), reduction="none", **kwargs))
    return losses if reduction == "none" else getattr(losses, reduction)()
