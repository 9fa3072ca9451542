"""Rules of layers: dense maps as batched products, norms and pools with the hosts among the channels or samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.env.engine.stacking.memory_format import doubled, fold, is_folded, unfold
from esper.env.engine.stacking.ops.elementwise import align, wrap
from esper.env.engine.stacking.stacked_tensor import NoRuleError, Stacked, rule

Function = Callable[..., Any]

SHORT_SEQUENCE = 64
"""Positions up to which attention is faster as plain products."""


# ------------------------------------------------------------------------------------------------ dense maps


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``[K, ..., C]`` by ``[K, C', C]`` → ``[K, ..., C']``: one batched product."""
    rows = x if x.dim() == 3 else x.reshape(len(x), -1, x.shape[-1])
    product = batched_product(rows, weight.mT, None if bias is None else bias[:, None])
    return product.view(*x.shape[:-1], product.shape[-1])


def batched_product(a: Tensor, b: Tensor, added: Tensor | None = None) -> Tensor:
    """``added + a @ b`` for ``[n, ...]`` each; a lone product :func:`doubled`."""
    if len(a) == 1:
        return batched_product(doubled(a), doubled(b), None if added is None else doubled(added))[:1]
    return torch.bmm(a, b) if added is None else torch.baddbmm(added, a, b)


@rule("linear")
def _linear(function: Function, x: Any, weight: Stacked, bias: Stacked | None = None) -> Stacked:
    """An input that all hosts share is not copied."""
    data = x.data if isinstance(x, Stacked) else x.expand(len(weight.data), *x.shape)
    return Stacked(linear(data, weight.data, None if bias is None else bias.data))


@rule("matmul", "__matmul__", "__rmatmul__", "bmm")
def _matmul(function: Function, a: Any, b: Any) -> Stacked:
    if min(a.dim(), b.dim()) < 2:
        raise NoRuleError("there is no rule for products with a stacked vector; train such hosts with engine='loop'")
    return Stacked(torch.matmul(*align(a, b)))


@rule("embedding")
def _embedding(
    function: Function,
    input: Any,
    weight: Stacked,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Stacked:
    """Every host looks its own tokens up in its own table ``[V, C]``: one gather from all tables, ``[K·V, C]``."""
    if padding_idx is not None or max_norm is not None or scale_grad_by_freq or sparse:
        raise NoRuleError("only plain embeddings have a rule for stacked hosts; train others with engine='loop'")
    hosts, vocabulary, channels = weight.data.shape
    tokens = input.data if isinstance(input, Stacked) else input.expand(hosts, *input.shape)
    first = torch.arange(hosts, device=tokens.device) * vocabulary
    table = weight.data.reshape(hosts * vocabulary, channels)
    return Stacked(F.embedding(tokens + first.view(-1, *(1,) * (tokens.dim() - 1)), table))


@rule("scaled_dot_product_attention")
def _attention(
    function: Function,
    query: Stacked,
    key: Stacked,
    value: Stacked,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Stacked:
    """The hosts join the samples. Short sequences are mixed by plain products, which are faster there."""
    if dropout_p:
        raise NoRuleError("dropout draws from each host's own random stream; train such hosts with engine='loop'")
    if isinstance(attn_mask, Stacked):
        raise NoRuleError("there is no rule for attention masks that differ between hosts; use engine='loop'")
    q, k, v = (x.data.flatten(0, 1) for x in (query, key, value))
    if attn_mask is None and not kwargs and max(q.shape[-2], k.shape[-2]) <= SHORT_SEQUENCE:
        mixed = _short_attention(q, k, v, is_causal)
    else:
        mixed = function(q, k, v, attn_mask, is_causal=is_causal, **kwargs)
    return Stacked(mixed.unflatten(0, (len(query.data), -1)))


def _short_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ value


# ---------------------------------------------------------------------------------------------- pools and norms


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
    # Not addcmul, which rounds once or twice, as the loop falls.
    return normed * weight if bias is None else normed * weight + bias


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
    w, b = (None if p is None else p.data.reshape(-1) for p in (weight, bias))
    return Stacked(unfold(F.group_norm(fold(input.data), hosts * num_groups, w, b, eps), hosts))


@rule("batch_norm")
def _batch_norm(
    function: Function,
    input: Stacked,
    running_mean: Stacked | None,
    running_var: Stacked | None,
    weight: Stacked | None = None,
    bias: Stacked | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Stacked:
    """Over K times the channels; the running statistics, rows of a larger storage, are written back."""
    hosts = len(input.data)
    w, b = (None if p is None else p.data.reshape(-1) for p in (weight, bias))
    # Their ``data``, whose writing autograd does not see: they share a storage with weights that it still needs.
    rows = [None if p is None else p.data.data for p in (running_mean, running_var)]
    mean, var = (None if p is None else p.flatten().clone() for p in rows)
    normed = F.batch_norm(fold(input.data), mean, var, w, b, training, momentum, eps)
    if training:
        for row, updated in zip(rows, (mean, var), strict=True):
            if row is not None and updated is not None:
                row.copy_(updated.view_as(row))
    return Stacked(unfold(normed, hosts))


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
