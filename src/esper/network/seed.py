"""A seed: one instance of a blueprint, the style that joins it to its slot, and alpha."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import Function

from esper.network.blueprints import SlotSpec, build_blueprint, build_style

TRUST_RADIUS = 0.5
"""RMS of an isolated seed's effect, relative to its slot's activation, at which its gradient comes to rest."""


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


def isolated_gradient(
    grad: Float[Tensor, "*shape"],
    h: Float[Tensor, "*shape"],
    effect: Float[Tensor, "*shape"],
    rms: Callable[[Tensor], Tensor] = _rms,
) -> Float[Tensor, "*shape"]:
    """The gradient that a seed in isolation gets at its ``effect``: the host's own gradient, within a trust region.

        grad + price · effect,   price = rms(grad) / (TRUST_RADIUS · rms(h))

    The loss never feels an isolated seed, so ``grad`` alone would push its effect outwards for ever, the further the
    longer it trains, and the host would break when it is blended in (measured on ``mnist1d``: J 0.61 without the second
    term, 0.83 with it). With it the effect comes to rest at a step against the gradient, of at most ``TRUST_RADIUS``
    times the root mean square of the activation: functional gradient boosting (Friedman, Annals of Statistics 2001)
    with a proximal term.

    Args:
        grad: Gradient of the loss at the slot's output, the shape of ``h``.
        h: The slot's output.
        effect: What the seed would add to it.
        rms: Root mean square, in a shape that broadcasts; over everything by default. Stacked hosts keep theirs apart.
    """
    price = rms(grad) / (TRUST_RADIUS * rms(h) + torch.finfo(torch.float32).tiny)
    return (grad + price * effect).to(effect.dtype)


class _StraightThrough(Function):
    """Forward: h, bit for bit. Backward: the gradient goes to h unaltered, and to ``effect`` within a trust region.

    The output is a copy because the host may go on in place (``ReLU(inplace=True)``, ``out += identity``), which
    autograd forbids on a view made by a custom function and which would overwrite what the seed saved. Forward and
    context are apart because the transforms of ``torch.func`` ask for it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, effect: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        h, effect = ctx.saved_tensors
        return grad, isolated_gradient(grad, h, effect)


def straight_through(h: Float[Tensor, "*shape"], effect: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``h`` bit for bit; in the backward pass ``effect`` receives :func:`isolated_gradient`.

    With ``effect`` computed from a detached h, the host's outputs and gradients are bit for bit those without it.
    """
    return _StraightThrough.apply(h, effect)


class Seed(nn.Module):
    """A blueprint in a slot: ``h + alpha · effect(h)``.

    Args:
        blueprint: Name of the blueprint.
        spec: The slot it grows in.
        style: Name of the style.

    ``alpha`` is a buffer, not a Python number, so that a compiled model is not compiled again when it moves.
    """

    alpha: Tensor

    def __init__(self, blueprint: str, spec: SlotSpec, style: str) -> None:
        super().__init__()
        self.blueprint = build_blueprint(blueprint, spec)
        self.style = build_style(style, spec)
        self.register_buffer("alpha", torch.zeros(()))
        self.whole = False
        """Alpha is 1 and stays so: the product by it is left out, which changes no bit and costs a pass over h."""

    @property
    def mixes_positions(self) -> bool:
        """Whether its effect at one position of a sequence depends on others."""
        return self.blueprint.mixes and self.blueprint.spec.kind == "sequence"

    def effect(self, h: Float[Tensor, "*shape"], keep: Bool[Tensor, "N L"] | None = None) -> Float[Tensor, "*shape"]:
        """What the seed adds to the slot's output ``h`` at alpha 1; the same shape as ``h``.

        ``keep [N, L]``, for a seed that mixes positions, is false at padding, which it must not see.
        An activation of another dtype than the seed's parameters is converted, unless autocast does so.
        """
        if h.dtype != self.alpha.dtype and not torch.is_autocast_enabled(h.device.type):
            h = h.to(self.alpha.dtype)
        return self.style(h, self.blueprint(h) if keep is None else self.blueprint(h, keep))

    def mix(self, h: Float[Tensor, "*shape"], effect: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """``h + alpha · effect`` in the dtype of ``h``."""
        return (h + (effect if self.whole else self.alpha * effect)).to(h.dtype)

    def blend(self, h: Float[Tensor, "*shape"], keep: Bool[Tensor, "N L"] | None = None) -> Float[Tensor, "*shape"]:
        """The slot's output with the seed blended in at ``alpha``; the same shape as ``h``. ``keep`` as above."""
        return self.mix(h, self.effect(h, keep))


@cache
def seed_parameters(blueprint: str, spec: SlotSpec, style: str) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that a seed of this blueprint and style would bring; nothing is allocated."""
    with torch.device("meta"):
        return list(Seed(blueprint, spec, style).named_parameters())


def plant(
    blueprint: str, spec: SlotSpec, style: str, *, entropy: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Seed:
    """A new seed whose initial weights are a function of ``entropy`` alone; no global random state is used or moved."""
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(state)  # torch.manual_seed would also reseed the accelerators
        seed = Seed(blueprint, spec, style)
    return seed.to(device=device, dtype=dtype)
