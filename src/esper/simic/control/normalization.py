"""Running mean and standard deviation of observations.

Shapes: ``...`` any batch, ``shape`` of one observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from esper.tamiyo.networks.moments import merge_moments


class RunningMeanStd(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch in float64.

    Any split into batches, down to single observations, gives the statistics of the whole
    (:func:`~esper.tamiyo.networks.moments.merge_moments`).

    Note:
        :meth:`update` runs in inference mode and :meth:`normalize` on purpose does not. Statistics are facts about data
        and carry no gradient; normalised observations feed the policy's forward pass, and gradients must flow through.

    Args:
        shape: Shape of one observation; ``()`` for scalars.
        epsilon: Added to the variance before the root is taken.
        chosen: bool ``shape``, which numbers :meth:`normalize` changes; the others pass as they are. ``None``: all.

    Example:
        >>> statistics = RunningMeanStd((2,))
        >>> statistics.update(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
        >>> statistics.normalize(torch.tensor([2.0, 10.0]))
        tensor([1., 0.])
    """

    mean: Tensor
    """float64 ``shape``."""
    var: Tensor
    """Population variance, float64 ``shape``; 1 before the first update."""
    count: Tensor
    """Number of observations seen, float64 scalar."""
    chosen: Tensor
    """Which numbers are normalised, bool ``shape``."""

    def __init__(self, shape: Sequence[int] = (), epsilon: float = 1e-8, chosen: Tensor | None = None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(self.shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("chosen", torch.ones(self.shape, dtype=torch.bool) if chosen is None else chosen)

    # Buffers are written in place: a buffer replaced under inference mode would be an inference tensor, and every later
    # normalize() in training would fail.
    @torch.inference_mode()
    def update(self, x: Shaped[Tensor, "*batch_shape"]) -> None:
        """Merge a batch ``[..., *shape]``; a batch of no observations changes nothing.

        Raises:
            ValueError: For another shape, or a NaN or infinite number.
        """
        self._check_shape(x)
        if x.numel() == 0:
            return
        if not torch.isfinite(x).all():
            raise ValueError(
                "expected finite observations, got NaN or infinity; statistics would never recover from it"
            )
        batch = x.detach().to(torch.float64).reshape(-1, *self.shape)
        count = batch.shape[0]
        var, mean = torch.var_mean(batch, dim=0, correction=0)
        merge_moments(self.mean, self.var, self.count, batch_mean=mean, batch_squares=var * count, batch_count=count)

    def normalize(self, x: Float[Tensor, "*batch_shape"], clip: float = 10.0) -> Float[Tensor, "*batch_shape"]:
        """``(x − mean) / std``, clipped to ``[−clip, clip]``; differentiable, of the shape and type of ``x``.

        Before the first update only the clipping acts.

        Raises:
            ValueError: For another shape, or numbers that are not floating point.
        """
        self._check_shape(x)
        if not x.is_floating_point():
            raise ValueError(f"expected floating point observations, got {x.dtype}; use x.float()")
        # Subtracted in float64: a large offset would otherwise eat the digits that vary.
        standard = (x.to(torch.float64) - self.mean) * (self.var + self.epsilon).rsqrt()
        return torch.where(self.chosen, standard.to(x.dtype).clamp(-clip, clip), x)

    def reset(self) -> None:
        """Forget everything seen, in place."""
        self.mean.zero_()
        self.var.fill_(1.0)
        self.count.zero_()

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[x.ndim - len(self.shape) :]) != self.shape:
            shape = ", ".join(map(str, ("...", *self.shape)))
            raise ValueError(f"expected observations of shape [{shape}], got {list(x.shape)}")
