"""The numbers of a state on one scale, whatever the number of slots.

Shapes: N rows, S slots, R numbers about the run, F numbers about a slot.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esper.tamiyo.networks.moments import merge_moments

_LEAST_VARIANCE = 1e-4
_CLIP = 5.0


class StateStandardizer(nn.Module):
    """Shifts and scales every number by the mean and deviation of what was known of it; unknown numbers become 0.

    A price that lies between 0.2 and 0.8 says as much as a score, but beside numbers that are far from 0 most of the
    time it weighs little. All slots share their statistics, so that S may be any number. Before the first
    :meth:`update` known numbers pass as they are (within ±5, as always).

    Args:
        run_size: R.
        slot_size: F.
        unknown: The number that says that something is not known; ``None``: everything is.

    Example:
        >>> standardizer = StateStandardizer(1, 2, unknown=-2.0)
        >>> standardizer.update(torch.tensor([[0.0, 1.0, -2.0], [2.0, 3.0, 4.0]]))
        >>> run, slots = standardizer(torch.tensor([[2.0]]), torch.tensor([[[3.0, 4.0], [1.0, -2.0]]]))
        >>> run.round().tolist(), slots.round().tolist()
        ([[1.0]], [[[1.0, 0.0], [-1.0, 0.0]]])
    """

    mean: Tensor
    """float64 ``[R + F]``."""
    var: Tensor
    """Population variance, float64 ``[R + F]``; 1 where nothing was known yet."""
    count: Tensor
    """Known numbers seen, float64 ``[R + F]``."""
    shift: Tensor
    """What is taken from a number: the mean, float32 ``[R + F]``."""
    scale: Tensor
    """What a number is multiplied with: 1 / deviation, float32 ``[R + F]``."""

    def __init__(self, run_size: int, slot_size: int, unknown: float | None = None) -> None:
        super().__init__()
        self.run_size, self.slot_size = run_size, slot_size
        self.unknown = math.nan if unknown is None else unknown  # no number equals NaN
        for name, fill in (("mean", 0.0), ("var", 1.0), ("count", 0.0)):
            self.register_buffer(name, torch.full((run_size + slot_size,), fill, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(run_size + slot_size))
        self.register_buffer("scale", torch.ones(run_size + slot_size))

    # In place, as in RunningMeanStd: a buffer replaced under inference mode could not take part in training.
    @torch.inference_mode()
    def update(self, states: Float[Tensor, "N D"]) -> None:
        """Merge states, D = R + F·S; different calls may have different S.

        Raises:
            ValueError: For a NaN or infinite number.
        """
        if not torch.isfinite(states).all():
            raise ValueError("expected finite states, got NaN or infinity; statistics would never recover from it")
        run, slots = states[:, : self.run_size], states[:, self.run_size :].reshape(-1, self.slot_size)
        self._merge(slice(None, self.run_size), run.double())
        self._merge(slice(self.run_size, None), slots.double())
        self.shift.copy_(self.mean)
        self.scale.copy_((self.var + _LEAST_VARIANCE).rsqrt())

    def _merge(self, fields: slice, x: Float[Tensor, "N fields"]) -> None:
        known = x != self.unknown
        count = known.sum(0).double()
        mean = torch.where(known, x, 0.0).sum(0) / count.clamp(min=1)
        squares = torch.where(known, (x - mean).square(), 0.0).sum(0)
        merge_moments(
            self.mean[fields],
            self.var[fields],
            self.count[fields],
            batch_mean=mean,
            batch_squares=squares,
            batch_count=count,
        )

    def forward(
        self, run_NR: Float[Tensor, "N R"], slots_NSF: Float[Tensor, "N S F"]
    ) -> tuple[Float[Tensor, "N R"], Float[Tensor, "N S F"]]:
        """The same shapes, standardised and clipped to ±5; differentiable."""
        sizes = (self.run_size, self.slot_size)
        (run_shift, slot_shift), (run_scale, slot_scale) = self.shift.split(sizes), self.scale.split(sizes)
        return self._standard(run_NR, run_shift, run_scale), self._standard(slots_NSF, slot_shift, slot_scale)

    def _standard(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return ((x - shift) * scale).clamp(-_CLIP, _CLIP).masked_fill(x == self.unknown, 0.0)
