"""Blueprints that see the whole sample at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from esper.network.blueprints.blueprint import Blueprint, ChannelNorm, SlotSpec, register, zeroed

MAX_ATTENTION_POSITIONS = 1024
"""Attention costs the square of the positions; slots with more of them do not offer it."""


@register
class SqueezeExcite(Blueprint):
    """Channels re-weighted by what the whole sample holds (Hu et al., 2018): delta = h · tanh(W₂ gelu(W₁ mean(h))).

    The original multiplies h by a sigmoid; h + delta is h times a number from 0 to 2, which is 1 at birth. The few
    hidden units have a GELU because a ReLU can be born dead. On vectors the mean is h itself: a gate on the features.
    """

    name = "squeeze_excite"
    mixes = True

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        hidden = max(1, spec.channels // 4)
        self.squeeze = nn.Linear(spec.channels, hidden)
        self.excite = zeroed(nn.Linear(hidden, spec.channels))

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        """Every slot but causal ones: the mean sees the future."""
        return super().fits(spec) and not spec.causal

    def forward(self, h: Float[Tensor, "*shape"], keep: Bool[Tensor, "N L"] | None = None) -> Float[Tensor, "*shape"]:
        channels_last = h.movedim(self.spec.channel_dim, -1)
        if keep is not None:
            pooled = h.masked_fill(~keep[..., None], 0).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)
        else:
            pooled = channels_last if self.spec.kind == "vector" else channels_last.flatten(1, -2).mean(1)
        weights = torch.tanh(self.excite(F.gelu(self.squeeze(pooled))))
        if self.spec.kind == "sequence":
            weights = weights[:, None]
        elif self.spec.kind == "image":
            weights = weights[:, :, None, None]
        return h * weights


@register
class Attention(Blueprint):
    """Self-attention over the positions of the normalised activation (Vaswani et al., 2017), without an MLP."""

    name = "attention"
    mixes = True
    kinds = frozenset({"sequence", "image"})

    def __init__(self, spec: SlotSpec) -> None:
        super().__init__(spec)
        self.heads = next(n for n in (8, 4, 2, 1) if spec.channels % n == 0 and (n == 1 or spec.channels // n >= 8))
        self.norm = ChannelNorm(spec)
        self.qkv = nn.Linear(spec.channels, 3 * spec.channels)
        self.out = zeroed(nn.Linear(spec.channels, spec.channels))

    @classmethod
    def fits(cls, spec: SlotSpec) -> bool:
        """Sequences and images with 2 to :data:`MAX_ATTENTION_POSITIONS` positions and at least two channels."""
        return super().fits(spec) and spec.channels > 1 and 1 < spec.positions <= MAX_ATTENTION_POSITIONS

    def forward(self, h: Float[Tensor, "*shape"], keep: Bool[Tensor, "N L"] | None = None) -> Float[Tensor, "*shape"]:
        tokens = self.norm(h).movedim(self.spec.channel_dim, -1)  # [N, ..., C]
        positions = tokens.shape[1:-1]
        qkv = self.qkv(tokens.flatten(1, -2)).unflatten(-1, (3, self.heads, -1))  # [N, P, 3, heads, C / heads]
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if keep is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.spec.causal)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._may_see(keep))
        delta = self.out(mixed.transpose(1, 2).flatten(2))
        return delta.unflatten(1, positions).movedim(-1, self.spec.channel_dim)

    def _may_see(self, keep: Tensor) -> Tensor:
        """Whom each position may attend to, ``[N, 1, L, L]``: itself, so that padding has something, and no padding."""
        everywhere = torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool, device=keep.device)
        earlier = everywhere.tril() if self.spec.causal else everywhere
        itself = everywhere.tril() & everywhere.triu()
        return keep[:, None, None] & earlier | itself
