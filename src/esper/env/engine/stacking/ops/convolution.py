"""Rules of convolutions. Which form is fastest depends on the sizes; each of these was several times so on a CPU.

=====================================  ===========================================================================
one point (kernel 1)                   one batched product over the channels
few positions, or a channel by itself  one batched product with the convolution written out as a matrix (Toeplitz)
any other                              one grouped convolution with the hosts folded into the channels
=====================================  ===========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from esper.env.engine.stacking.memory_format import doubled, fold, unfold
from esper.env.engine.stacking.ops.layers import linear
from esper.env.engine.stacking.stacked_tensor import Stacked, rule

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

MATRIX_POSITIONS = 64
"""A convolution of single channels over at most so many positions is written out as a matrix."""

MATRIX_ELEMENTS = 2**15
"""Any other is if its matrix has at most so many elements, and is not much fuller of zeros than of weights."""


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    function: Callable[..., Tensor],
    input: Any,
    weight: Stacked,
    bias: Stacked | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Stacked:
    dims = weight.dim() - 2
    settings = tuple((value,) * dims if isinstance(value, int) else value for value in (stride, padding, dilation))
    if isinstance(input, Stacked) and not isinstance(padding, str):
        w, b = weight.data, None if bias is None else bias.data
        if _is_pointwise(w, settings, groups):
            return Stacked(linear(input.data.movedim(2, -1), w.flatten(2), b).movedim(-1, 2))
        if _fits_matrix(input.data, w, groups):
            return Stacked(_as_matrix(input.data, w, b, settings, groups))
    return _grouped(function, input, weight, bias, (stride, padding, dilation), groups)


def _grouped(
    function: Callable[..., Tensor],
    input: Any,
    weight: Stacked,
    bias: Stacked | None,
    settings: tuple[Any, Any, Any],
    groups: int,
) -> Stacked:
    """One convolution with K times the groups; an input that all hosts share needs no groups for them.

    A lone host is :func:`doubled`: a convolution of one group is another algorithm.
    """
    hosts = len(weight.data)
    count = max(hosts, 2)
    if isinstance(input, Stacked):
        folded, all_groups = fold(doubled(input.data)), count * groups
    elif groups == 1:
        folded, all_groups = input, 1
    else:
        folded, all_groups = input.repeat(1, count, *(1,) * (input.dim() - 2)), count * groups
    flat_bias = None if bias is None else doubled(bias.data).reshape(-1)
    result = function(folded, doubled(weight.data).flatten(0, 1), flat_bias, *settings, all_groups)
    return Stacked(unfold(result, count)[:hosts])


def _is_pointwise(weight: Tensor, settings: Sequence[Any], groups: int) -> bool:
    stride, padding, _ = settings
    return groups == 1 and weight.shape[3:].numel() == 1 and set(stride) == {1} and set(padding) == {0}


def _fits_matrix(x: Tensor, weight: Tensor, groups: int) -> bool:
    positions, taps = x.shape[3:].numel(), weight.shape[3:].numel()
    if groups > 1:
        return weight.shape[2] == 1 and positions <= MATRIX_POSITIONS
    channels = x.shape[2] * weight.shape[1]
    return (positions <= 2 * taps or x.shape[2] == 1) and channels * positions**2 <= MATRIX_ELEMENTS


@lru_cache(maxsize=256)
def _pattern(
    sizes: tuple[int, ...], kernel: tuple[int, ...], settings: tuple[Any, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    """Which weight of the kernel leads from which position to which, 0 or 1, ``[taps, P · P']``; and the P' sizes."""
    positions, taps = math.prod(sizes), math.prod(kernel)
    points = torch.eye(positions, dtype=dtype, device=device).view(positions, 1, *sizes)
    kernels = torch.eye(taps, dtype=dtype, device=device).view(taps, 1, *kernel)
    reached = _CONVOLUTIONS[len(sizes)](points, kernels, None, *settings)
    return reached.flatten(2).transpose(0, 1).flatten(1), tuple(reached.shape[2:])


def _as_matrix(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any, groups: int) -> Tensor:
    """``[K, N, C, ...]`` → ``[K, N, C', ...]`` (in memory ``[K, N, ..., C']``); a lone host is :func:`doubled`."""
    asked, x, weight, bias = len(x), doubled(x), doubled(weight), None if bias is None else doubled(bias)
    hosts, samples, channels = x.shape[:3]
    outputs, inputs = weight.shape[1:3]
    with torch.no_grad():
        pattern, sizes = _pattern(tuple(x.shape[3:]), tuple(weight.shape[3:]), settings, x.dtype, x.device)
    before, after = x.shape[3:].numel(), math.prod(sizes)
    matrix = weight.reshape(-1, len(pattern)) @ pattern
    if groups == 1:
        matrix = matrix.view(hosts, outputs, inputs, before, after).permute(0, 3, 2, 4, 1)
        rows = x.flatten(3).transpose(2, 3).reshape(hosts, samples, before * inputs)
        product = torch.bmm(rows, matrix.reshape(hosts, before * inputs, after * outputs))
        result = product.view(hosts, samples, after, outputs)
    else:
        matrix = matrix.view(hosts * channels, -1, before, after).transpose(1, 2).flatten(2)
        rows = x.flatten(3).transpose(1, 2).reshape(hosts * channels, samples, before)
        product = torch.bmm(rows, matrix).view(hosts, channels, samples, -1, after)
        result = product.permute(0, 2, 4, 1, 3).reshape(hosts, samples, after, outputs)
    if bias is not None:
        result = result + bias[:, None, None]
    # Cut here, where what comes back lies in memory as that of several hosts does: sums follow it.
    return result[:asked].view(asked, samples, *sizes, outputs).movedim(-1, 2)
