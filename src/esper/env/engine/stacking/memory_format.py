"""In which order a tensor's axes lie in memory, and work on rows that leaves that order as it is.

A value ``[K, N, C, H, W]`` may lie as ``[N, K·C, H, W]`` (what a grouped convolution reads and writes), as
``[K, N, H, W, C]`` (what a batched product does) or as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def axes_in_memory(x: Tensor) -> tuple[int, ...]:
    """The axes of ``x``, the one with the longest stride first."""
    return tuple(sorted(range(x.dim()), key=x.stride, reverse=True))


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes ``permute(order)``."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def relaid(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the order of memory of ``like``."""
    order = axes_in_memory(like)
    return x.permute(order).contiguous().permute(inverse(order))


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows ``[n, ...]`` of ``[K, ...]``, a copy in the same order of memory."""
    if x.is_contiguous():
        return x.index_select(0, rows)
    order = axes_in_memory(x)
    return x.permute(order).index_select(order.index(0), rows).permute(inverse(order))


def pick_rows(x: Tensor, rows: Tensor) -> Tensor:
    """As :func:`take_rows`, for ascending rows; ``x`` itself if they are all of them."""
    return x if len(rows) == len(x) else take_rows(x, rows)


def add_to_rows(x: Tensor, rows: Tensor, part: Tensor) -> None:
    """``x[rows] += part``, for distinct rows."""
    if x.is_contiguous():
        x.index_add_(0, rows, part)
    else:
        order = axes_in_memory(x)
        x.permute(order).index_add_(order.index(0), rows, part.permute(order))


def cat_rows(parts: Sequence[Tensor]) -> Tensor:
    """``[n₁, ...]``, ``[n₂, ...]``, … one after the other, in the order of memory of the first."""
    order = axes_in_memory(parts[0])
    return torch.cat([part.permute(order) for part in parts], order.index(0)).permute(inverse(order))


def doubled(x: Tensor) -> Tensor:
    """``[K, ...]``, twice if it is that of one host.

    One host alone may be another algorithm than several, which rounds otherwise, forward or backward. So it runs beside
    a copy of itself: the company that a host is in must not change a bit of it.
    """
    return x if len(x) > 1 else x.expand(2, *x.shape[1:])


def is_folded(x: Tensor) -> bool:
    """Whether the memory of ``[K, N, C, ...]`` lies as ``[N, K, C, ...]``, so that K and C fold for nothing."""
    return x.stride(0) < x.stride(1)


def fold(x: Tensor) -> Tensor:
    """``[K, N, C, ...]`` → ``[N, K·C, ...]``, contiguous: some layers round otherwise on the layouts of one host."""
    return x.transpose(0, 1).flatten(1, 2).contiguous()


def unfold(x: Tensor, hosts: int) -> Tensor:
    """``[N, K·C, ...]`` → ``[K, N, C, ...]``, a view."""
    return x.unflatten(1, (hosts, -1)).transpose(0, 1)
