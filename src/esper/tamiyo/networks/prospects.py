"""Choices that are described: a head that judges each of its choices by what is known of it, not by its index alone.

Shapes: N rows (any batch, flattened), S slots, n choices of the described head, P numbers about each choice in each
slot, E size of a slot encoding, D size of the hidden layer per head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.networks.initialization import HIDDEN_GAIN, linear

PROSPECTS = "prospects"
"""Name of the part of an observation that describes choices."""


class ProspectEncoder(nn.Module):
    """Encodes what is known of every choice in every slot, and says to each slot what its best prospects are.

    The description alone is read, never the index of a choice, so that a choice that was not there in training can be
    judged by what is known of it. A number that is not known counts as 0, with an indicator beside it. What is added to
    slots and logits is 0 at first, so that a policy that learns to read descriptions begins as what it was.

    Args:
        config: The sizes, and the head whose choices are described.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        assert config.described_head is not None
        slot_head = config.heads.named(config.described_head).parent
        assert slot_head is not None, "the configuration is checked"
        self.head, self.slot_head = config.described_head, slot_head
        self.unknown = config.unknown
        slot_dim, head_dim = config.slot_dim, config.head_dim
        self.described = linear(2 * config.prospect_size, slot_dim, HIDDEN_GAIN)
        self.key = linear(slot_dim, slot_dim, 1.0, bias=False)
        self.for_slot = linear(slot_dim, slot_dim, 0.0)
        self.query = linear(head_dim, slot_dim, 0.0)

    def forward(self, prospects_NSnP: Float[Tensor, "N S n P"]) -> Float[Tensor, "N S n E"]:
        """Encodings of the choices."""
        known = torch.ones_like(prospects_NSnP) if self.unknown is None else (prospects_NSnP != self.unknown)
        known = known.to(prospects_NSnP.dtype)
        return torch.relu(self.described(torch.cat([prospects_NSnP * known, known], dim=-1)))

    def summary(self, described_NSnE: Float[Tensor, "N S n E"]) -> Float[Tensor, "N S E"]:
        """What is added to the encoding of each slot: its prospects, whatever their order."""
        return self.for_slot(described_NSnE.amax(2))

    def logits(
        self,
        hidden_ND: Float[Tensor, "N D"],
        described_NSnE: Float[Tensor, "N S n E"],
        slot_N: Int[Tensor, " N"],
    ) -> Float[Tensor, "N n"]:
        """What is added to the logits of the described head: it points at the choices in the slot that was drawn."""
        rows = torch.arange(len(slot_N), device=slot_N.device)
        keys_NnE = self.key(described_NSnE[rows, slot_N])
        query_NE1 = self.query(hidden_ND).unsqueeze(-1)
        return torch.bmm(keys_NnE, query_NE1).squeeze(-1) * (1 / math.sqrt(keys_NnE.shape[-1]))
