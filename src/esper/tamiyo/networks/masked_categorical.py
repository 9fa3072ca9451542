"""A categorical distribution over the allowed choices only.

Shapes: ``...`` any batch, ``n`` choices.
"""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_NOISE = torch.finfo(torch.float32)


def gumbel_noise(
    shape: tuple[int, ...], device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Standard Gumbel noise, float32 ``shape``, always finite (an infinite one could draw a masked choice)."""
    exponential = torch.empty(shape, dtype=torch.float32, device=device).exponential_(generator=generator)
    return exponential.clamp_(_NOISE.tiny, _NOISE.max).log_().neg_()


def negative_plogp(log_probs: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """``−p log p``, the terms of an entropy; 0 where p is 0, and without NaN gradients there."""
    # exp(-1000) is 0 in float32 and float64 alike, so the clamp changes no value; it keeps 0 · ∞ out of both passes.
    return -(log_probs.exp() * log_probs.clamp_min(-1000.0))


class MaskedCategorical:
    """Categorical distribution in which a masked choice has probability exactly 0 and its logit no gradient.

    With a floor f, every one of the m allowed choices has probability ``p' = f + (1 - m f) p``, where p is the softmax
    over the allowed logits. All results are float32 at least, whatever the precision of the logits.

    Args:
        logits: ``[..., n]``, floating point.
        mask: bool ``[..., n]``, True where allowed; ``None`` allows every choice.
        floor: Least probability of an allowed choice, ``0 <= floor < 1/n``.
        head: Name used in errors.
        check: Look for bad values (costs a few microseconds); shapes and types are always checked.

    Raises:
        ValueError: For logits that are not floating point or not finite, a mask of another shape or type, a row
            without an allowed choice (named), or a floor out of range.

    Example:
        >>> distribution = MaskedCategorical(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        >>> distribution.probs
        tensor([[0.5000, 0.0000, 0.5000]])
    """

    def __init__(
        self,
        logits: Float[Tensor, "*batch n"],
        mask: Bool[Tensor, "*batch n"] | None = None,
        floor: float = 0.0,
        head: str = "",
        *,
        check: bool = True,
    ) -> None:
        if not logits.is_floating_point():
            raise ValueError(f"head '{head}': expected floating point logits, got {logits.dtype}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape):
            raise ValueError(
                f"head '{head}': expected a bool mask of shape {list(logits.shape)} (True = allowed), "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        if floor and not 0.0 <= floor < 1.0 / logits.shape[-1]:
            raise ValueError(
                f"head '{head}': a probability floor of {floor} for each of {logits.shape[-1]} choices does not leave "
                f"a distribution; it must be at least 0 and below 1/{logits.shape[-1]}"
            )
        self.head = head
        self.mask = mask
        self.check = check
        if check:
            self._check_values(logits)
        self.log_probs = self._masked_log_softmax(logits, floor)
        """Log-probabilities ``[..., n]``; −inf where masked."""

    def _check_values(self, logits: Tensor) -> None:
        if not torch.isfinite(logits).all():
            raise ValueError(f"head '{self.head}': logits must be finite; to forbid a choice use the mask")
        if self.mask is not None and not (allowed := self.mask.any(-1)).all():
            row = (~allowed).nonzero()[0].tolist()
            raise ValueError(
                f"head '{self.head}': the mask of batch row {row[0] if len(row) == 1 else row} allows no choice; "
                "at least one must be allowed"
            )

    def _masked_log_softmax(self, logits: Tensor, floor: float) -> Tensor:
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.mask is None:
            log_probs = torch.log_softmax(logits, -1)
            return (floor + (1 - logits.shape[-1] * floor) * log_probs.exp()).log() if floor else log_probs
        log_probs = torch.log_softmax(torch.where(self.mask, logits, -torch.inf), -1)
        if not floor:
            return log_probs
        probs = log_probs.exp()
        # p + f (1 - m p) rather than f + (1 - m f) p: exactly 1 for a single allowed choice.
        floored = probs + floor * (1 - self.mask.sum(-1, keepdim=True) * probs)
        return torch.where(self.mask, floored.log(), -torch.inf)

    @cached_property
    def probs(self) -> Float[Tensor, "*batch n"]:
        """Probabilities ``[..., n]``; exactly 0 where masked."""
        return self.log_probs.exp()

    def sample(
        self, generator: torch.Generator | None = None, *, noise: Float[Tensor, "*batch n"] | None = None
    ) -> Int[Tensor, "*batch"]:
        """Draw a choice ``[...]`` (int64) by the Gumbel-max trick; never a masked one.

        Args:
            generator: Source of randomness.
            noise: :func:`gumbel_noise` ``[..., n]`` drawn beforehand, in place of a generator.
        """
        if noise is None:
            noise = gumbel_noise(tuple(self.log_probs.shape), self.log_probs.device, generator)
        return (self.log_probs + noise).argmax(-1)

    def mode(self) -> Int[Tensor, "*batch"]:
        """The likeliest choice ``[...]`` (int64); the first of equals."""
        return self.log_probs.argmax(-1)

    def log_prob(self, choice: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Log-probability ``[...]`` of ``choice`` (int64 ``[...]``); −inf for a masked choice.

        Raises:
            ValueError: For a choice outside the head.
        """
        if self.check and (outside := (choice < 0) | (choice >= self.log_probs.shape[-1])).any():
            raise ValueError(
                f"head '{self.head}': a choice must be from 0 to {self.log_probs.shape[-1] - 1}, "
                f"got {choice[outside][0].item()}"
            )
        return self.log_probs.gather(-1, choice.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Entropy in nats ``[...]``, over the allowed choices."""
        return negative_plogp(self.log_probs).sum(-1)

    def could_matter(self) -> Bool[Tensor, "*batch"]:
        """Whether more than one choice is allowed, bool ``[...]``."""
        return (self.log_probs > -torch.inf).sum(-1) > 1
