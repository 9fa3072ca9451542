"""``slots="auto"``: which submodules are proposed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esper.network.growing_network import GrowingNetwork
from esper.network.propose import MOST_SLOTS, propose_slots
from network.foreign_hosts import Foreign, bart, convnext, gpt2, t5, tokens
from network.hosts import SmallCNN, mlp


def proposed(host: Foreign) -> list[str]:
    return propose_slots(host.model, host.example)


def test_blocks_that_repeat_are_proposed_the_outermost_ones() -> None:
    assert proposed(gpt2()) == ["transformer.h.0", "transformer.h.1"]
    assert proposed(convnext()) == ["convnextv2.encoder.stages.0", "convnextv2.encoder.stages.1"]


@pytest.mark.parametrize("host", [t5("labels", 5), bart(labels=tokens(5))], ids=["t5", "bart"])
def test_encoder_and_decoder_both_grow(host: Foreign) -> None:
    parts = [name.replace("model.", "").partition(".")[0] for name in proposed(host)]
    assert parts == ["encoder", "encoder", "decoder", "decoder"]


def test_a_body_is_no_slot_where_there_are_some_inside_it() -> None:
    names = proposed(convnext(stages=1))
    assert "convnextv2" not in names
    assert len(names) > 1


def test_at_most_six_spread_over_the_depth_of_the_model() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    model = nn.Sequential(*[Block() for _ in range(12)], nn.Linear(8, 3))
    assert propose_slots(model, torch.randn(2, 8)) == ["1", "3", "5", "7", "9", "11"]
    assert MOST_SLOTS == 6


def test_weights_are_no_slots() -> None:
    def normed(inputs: int, outputs: int) -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(inputs, outputs))

    model = nn.Sequential(normed(4, 8), normed(8, 8), normed(8, 3))
    assert propose_slots(model, torch.randn(8, 4)) == ["0", "1"]


def test_what_the_model_puts_out_is_left_alone() -> None:
    assert propose_slots(mlp(), torch.randn(2, 4)) == ["1", "3"]
    assert propose_slots(SmallCNN(), torch.randn(2, 1, 5, 4)) == ["block"]


def test_a_model_that_cannot_learn_says_why() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.body(x)

    with pytest.raises(ValueError, match=r"found no slot in Frozen: .* runs without gradients .* never learn"):
        propose_slots(Frozen(), torch.randn(2, 4))


def test_what_is_proposed_can_grow() -> None:
    host = bart(labels=tokens(5))
    assert GrowingNetwork(host.model, proposed(host), host.example).num_slots == 4
