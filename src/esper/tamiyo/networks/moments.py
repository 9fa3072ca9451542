"""Running means and variances, merged batch by batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def merge_moments(
    mean: Float[Tensor, "*shape"],
    var: Float[Tensor, "*shape"],
    count: Float[Tensor, "*counts"],
    *,
    batch_mean: Float[Tensor, "*shape"],
    batch_squares: Float[Tensor, "*shape"],
    batch_count: Float[Tensor, "*counts"] | int,
) -> None:
    """Merge the moments of a batch into those of everything before, in place (Chan, Golub & LeVeque 1983).

    With δ = m_B − m and n = n_A + n_B: ``m ← m + δ n_B / n`` and ``M2 ← M2_A + M2_B + δ² n_A n_B / n``. So any split
    into batches gives the moments of the whole.

    Args:
        mean: float64.
        var: Population variance, float64; 1 where nothing was seen yet.
        count: Numbers seen, float64: one count per number, or one for all.
        batch_mean: Read only where the batch has a number.
        batch_squares: M2_B, the sum of squared distances from ``batch_mean``.
        batch_count: n_B, as ``count``.
    """
    total = count + batch_count
    divisor = total.clamp(min=1)
    delta = batch_mean - mean
    squares = var * count + batch_squares + delta.square() * (count * batch_count / divisor)
    mean.add_(delta * (batch_count / divisor))
    var.copy_(torch.where(total > 0, squares / divisor, 1.0))
    count.copy_(total)
