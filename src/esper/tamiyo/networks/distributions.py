"""What a head draws: one interface for one of several choices, for a set of bits and for numbers within bounds.

Shapes: N rows, n bits or numbers of a head.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from esper.tamiyo.networks.masked_categorical import MaskedCategorical

_LEAST_DEVIATION = 0.01
_AT_ZERO = math.log(math.expm1(1 - _LEAST_DEVIATION))  # an output of 0 means a deviation of 1
_NODES = 32


@runtime_checkable
class Distribution(Protocol):
    """What every kind of head gives. A choice is ``[N]`` for :class:`MaskedCategorical`, else ``[N, n]``.

    Log-probability and entropy are exactly 0, and without gradient, where the head is unused.
    """

    mask: Tensor | None

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """A choice drawn."""

    def mode(self) -> Tensor:
        """The choice of a policy that does not draw."""

    def log_prob(self, choice: Tensor) -> Tensor:
        """Log-probability (or log-density) of a choice, ``[N]``."""

    def entropy(self) -> Tensor:
        """Entropy in nats, ``[N]``."""

    def could_matter(self) -> Tensor:
        """Whether there is anything to choose, bool ``[N]``."""


class Bernoullis:
    """Of each of n things, whether it is taken: n independent bits.

    Args:
        logits: Log-odds of each bit being 1.
        mask: True where a bit may be 0, and where it may be 1; ``None`` allows both.
        floor: Least probability of an allowed value of a bit, below 1/2.
        head: Name used in errors.

    Example:
        >>> mask = torch.tensor([[[True, True], [True, False]]])  # the second must be 0
        >>> Bernoullis(torch.full((1, 2), 9.0), mask).mode()
        tensor([[1, 0]])
    """

    def __init__(
        self,
        logits: Float[Tensor, "N n"],
        mask: Bool[Tensor, "N n 2"] | None = None,
        floor: float = 0.0,
        head: str = "",
    ) -> None:
        self.mask = mask
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        self.bits = MaskedCategorical(pairs, mask, floor, head, check=False)

    def sample(
        self, generator: torch.Generator | None = None, *, noise: Float[Tensor, "N 2*n"] | None = None
    ) -> Int[Tensor, "N n"]:
        """Bits 0 and 1, int64; ``noise`` is Gumbel noise drawn beforehand."""
        return self.bits.sample(generator, noise=None if noise is None else noise.view(self.bits.log_probs.shape))

    def mode(self) -> Int[Tensor, "N n"]:
        """The likelier value of each bit."""
        return self.bits.mode()

    def log_prob(self, choice: Int[Tensor, "N n"]) -> Float[Tensor, " N"]:
        """Log-probability of all bits together; −inf with a masked one."""
        return self.bits.log_prob(choice).sum(-1)

    def entropy(self) -> Float[Tensor, " N"]:
        """Entropy of all bits together, in nats."""
        return self.bits.entropy().sum(-1)

    def could_matter(self) -> Bool[Tensor, " N"]:
        """Whether any bit may be both."""
        return self.bits.could_matter().any(-1)


class SquashedGaussian:
    r"""Numbers a = tanh(u) in (−1, 1), with u ~ N(mean, deviation²) drawn for each by itself.

    A choice is u, not a: near a bound many u round to the same a, and none could be found again. So the density is
    right up to the bounds, and never infinite:

    .. math:: \log p(a) = \log N(u) - \log(1 - \tanh^2 u), \quad
              \log(1 - \tanh^2 u) = 2 (\log 2 - u - \mathrm{softplus}(-2u))

    The entropy is that of a, :math:`H(u) + E_u[\log(1 - \tanh^2 u)]`, the expectation by Gauss-Hermite quadrature. It
    is greatest, n log 2, where a is uniform; that of u alone would pay for pushing all of a to the bounds.

    Args:
        output: Of the network: the means, and then what the deviations are made of, which 0 makes 1.
        used: Rows in which the head is used; ``None``: all.

    Example:
        >>> distribution = SquashedGaussian(torch.zeros(1, 2))
        >>> SquashedGaussian.bounded(distribution.mode()), distribution.log_prob(torch.zeros(1, 1)).round(decimals=3)
        (tensor([[0.]]), tensor([-0.9190]))
    """

    mask: Tensor | None = None

    def __init__(self, output: Float[Tensor, "N 2*n"], used: Bool[Tensor, "N 1"] | None = None) -> None:
        if output.dtype not in (torch.float32, torch.float64):
            output = output.float()
        self.mean, raw = output.chunk(2, dim=-1)
        self.deviation = F.softplus(raw + _AT_ZERO) + _LEAST_DEVIATION
        self.used = used

    @staticmethod
    def bounded(choice: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """The numbers a, from −1 to 1, that a choice stands for."""
        return choice.tanh()

    def sample(
        self, generator: torch.Generator | None = None, *, noise: Float[Tensor, "N n"] | None = None
    ) -> Float[Tensor, "N n"]:
        """A choice u drawn; 0 where the head is unused. ``noise`` is standard normal, drawn beforehand."""
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self._where_used((self.mean + self.deviation * noise).detach())

    def mode(self) -> Float[Tensor, "N n"]:
        """The median: u = mean."""
        return self._where_used(self.mean.detach())

    def log_prob(self, choice: Float[Tensor, "N n"]) -> Float[Tensor, " N"]:
        """Log-density of a, all numbers together."""
        u = choice.to(self.mean.dtype)
        normal = -0.5 * ((u - self.mean) / self.deviation).square() - self.deviation.log() - 0.5 * math.log(2 * math.pi)
        return self._where_used(normal - _log_slope(u)).sum(-1)

    def entropy(self) -> Float[Tensor, " N"]:
        """Entropy of a in nats, all numbers together; at most n log 2."""
        nodes, weights = _quadrature(self.mean.device, self.mean.dtype)
        u = self.mean[..., None] + self.deviation[..., None] * nodes
        normal = 0.5 + 0.5 * math.log(2 * math.pi) + self.deviation.log()
        return self._where_used(normal + (_log_slope(u) * weights).sum(-1)).sum(-1)

    def could_matter(self) -> Bool[Tensor, " N"]:
        """Where the head is used."""
        return torch.ones_like(self.mean[:, 0], dtype=torch.bool) if self.used is None else self.used.squeeze(-1)

    def _where_used(self, x_Nn: Shaped[Tensor, "N n"]) -> Tensor:
        return x_Nn if self.used is None else torch.where(self.used, x_Nn, 0.0)


def _log_slope(u: Tensor) -> Tensor:
    """log(1 − tanh²u), without ever taking the logarithm of 0."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept must be fit for training, whoever asks for it first
def _quadrature(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes and weights for expectations under a standard normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    as_tensor = [torch.as_tensor(x, device=device, dtype=dtype) for x in (nodes, weights / weights.sum())]
    return as_tensor[0], as_tensor[1]
