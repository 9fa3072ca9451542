"""LSTM and GRU of several layers, against PyTorch's own step by step, and against what must not pass a gap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from esper.heads import Head, HeadTable
from esper.tamiyo.networks import FactoredRecurrentActorCritic, NetworkConfig
from esper.tamiyo.networks.checks import HiddenState
from esper.tamiyo.networks.memory import Memory
from kinds import KINDS

HEADS = HeadTable([Head("move", 3)])


def memory_of(kind: Any, layers: int, size: int = 5) -> Memory:
    """In double precision, with biases that are not zero."""
    memory = Memory(kind, size, layers).double()
    for weights in memory.rnn.all_weights:
        for bias in weights[2:]:
            torch.nn.init.normal_(bias)
    return memory


def state_of(memory: Memory, batch: int) -> HiddenState:
    cells = memory.layers if memory.kind == "lstm" else 0
    return tuple(torch.randn(layers, batch, memory.size).double() for layers in (memory.layers, cells))


@pytest.fixture(params=["lstm", "gru"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("layers", [1, 3])
def test_steps_sequences_and_pytorchs_own_layers_agree(kind: str, layers: int) -> None:
    memory = memory_of(kind, layers)
    x, before = torch.randn(2, 6, 5).double(), state_of(memory, 2)
    own = memory.rnn(x, before if kind == "lstm" else before[0])
    outputs, after = memory(x, before)
    torch.testing.assert_close(outputs.view(2, 6, 5), own[0])
    steps, state = [], before
    for t in range(6):
        output, state = memory(x[:, t : t + 1], state)
        steps.append(output)
    torch.testing.assert_close(torch.stack(steps, 1), own[0])
    for part, last, own_part in zip(after, state, own[1] if kind == "lstm" else (own[1],), strict=False):
        torch.testing.assert_close(part, own_part)
        torch.testing.assert_close(last, own_part)


@pytest.mark.parametrize("layers", [1, 3])
def test_what_follows_a_gap_begins_with_an_empty_memory(kind: str, layers: int) -> None:
    """Whatever stands in the gap itself, and with exact zeros after a gap at the end."""
    memory = memory_of(kind, layers)
    x, before = torch.randn(2, 7, 5).double(), state_of(memory, 2)
    gaps = torch.tensor([[0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1]]).bool()
    outputs, after = memory(x, before, gaps)
    outputs = outputs.view(2, 7, 5)
    empty = tuple(torch.zeros_like(part[:, :1]) for part in before)
    for line, cut in ((0, 2), (1, 4)):
        alone = tuple(part[:, line : line + 1] for part in before)
        torch.testing.assert_close(outputs[line, :cut], memory(x[line : line + 1, :cut], alone)[0])
        torch.testing.assert_close(outputs[line, cut + 1 : 6], memory(x[line : line + 1, cut + 1 : 6], empty)[0])
    assert not any(part.any() for part in after)
    assert not outputs[gaps].any()


@pytest.mark.parametrize("gaps", [None, torch.tensor([[0, 1, 0, 0]]).bool()], ids=["whole", "gap"])
def test_gradients_are_the_numerical_ones(kind: str, gaps: Tensor | None) -> None:
    memory = memory_of(kind, 2, size=3)
    x, before = torch.randn(1, 4, 3).double().requires_grad_(), [p.requires_grad_() for p in state_of(memory, 1)]
    weights = list(memory.parameters())

    def outputs(x: Tensor, *state: Tensor) -> Tensor:
        return memory(x, (state[0], state[1]), gaps)[0]

    assert torch.autograd.gradcheck(lambda *given: outputs(*given[:3]), (x, *before, *weights))


def test_no_gradient_passes_a_gap(kind: str) -> None:
    memory = memory_of(kind, 2)
    x, before = torch.randn(1, 5, 5).double().requires_grad_(), [p.requires_grad_() for p in state_of(memory, 1)]
    outputs, _ = memory(x, (before[0], before[1]), torch.tensor([[0, 0, 1, 0, 0]]).bool())
    at_x, at_state = torch.autograd.grad(outputs[3:].sum(), (x, before[0]))
    assert not at_x[:, :3].any()
    assert not at_state.any()
    assert at_x[:, 3:].all()


# ---------------------------------------------------------------------- in the network


def network_of(**options: Any) -> FactoredRecurrentActorCritic:
    network = FactoredRecurrentActorCritic(heads=HEADS, state_dim=4, num_slots=0, hidden_dim=16, head_dim=8, **options)
    torch.nn.init.normal_(network.tree.output.weight)
    return network


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_weight_learns(options: dict[str, Any]) -> None:
    network = network_of(**options)
    actions = {"move": torch.randint(3, (2, 5))}
    evaluation = network.evaluate_actions(torch.randn(2, 5, 4), None, actions, {"move": None})
    (evaluation.log_probs["move"].sum() + evaluation.values.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("memory", ["lstm", "gru"])
@pytest.mark.parametrize("critic_memory", ["shared", "separate", "none"])
def test_the_critic_remembers_as_it_is_told_to(memory: Any, critic_memory: Any) -> None:
    """Which of actor and critic change with the policy's layers of the state, and which with the critic's own."""
    network = network_of(memory=memory, memory_layers=2, critic_memory=critic_memory)
    state, masks = torch.randn(3, 4), {"move": None}

    def differs(layers: slice) -> tuple[bool, bool]:
        hidden = network.initial_hidden(3)
        base = network.get_action(state, None, masks, hidden, deterministic=True)
        hidden[0][layers] += 1
        other = network.get_action(state, None, masks, hidden, deterministic=True)
        return not torch.equal(base.entropies["move"], other.entropies["move"]), not torch.equal(
            base.op_values, other.op_values
        )

    assert differs(slice(0, 2)) == (True, critic_memory == "shared")
    assert len(network.initial_hidden(3)[0]) == (4 if critic_memory == "separate" else 2)
    if critic_memory == "separate":
        assert differs(slice(2, 4)) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "rnn"}, r"memory: expected one of \('lstm', 'gru', 'none'\), got 'rnn'"),
        ({"activation": "sine"}, "activation: expected one of"),
        ({"critic_memory": "own"}, "critic_memory: expected one of"),
        ({"memory": "none", "critic_memory": "separate"}, "critic_memory='separate' needs a kind of memory"),
        ({"memory_layers": 0}, "memory_layers: expected 1 to 64, got 0"),
        ({"hidden_dim": 0}, "hidden_dim: expected a size of 1 or more, got 0"),
        ({"head_dim": 0}, "head_dim: expected a size of 1 or more, got 0"),
        ({"slot_dim": -1}, "slot_dim: expected a size of 1 or more, got -1"),
        ({"part_dim": 0}, "part_dim: expected a size of 1 or more, got 0"),
        ({"policy_layers": (8, 0)}, r"policy_layers: expected sizes of 1 or more, got \(8, 0\)"),
    ],
)
def test_options_that_make_no_network_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(heads=HEADS, state_dim=4, **options)


def test_layers_have_the_sizes_that_are_asked_for() -> None:
    network = network_of(encoder_layers=(20, 24), policy_layers=(28,), critic_layers=(12, 10), activation="tanh")
    assert [tuple(layer.weight.shape) for layer in network.encoder_layers[::3]] == [(20, 4), (24, 20)]
    assert network.encoder.weight.shape == (16, 24)
    assert network.tree.hidden.weight.shape == (8, 28)
    assert network.critic_hidden.weight.shape == (8, 10)
    assert NetworkConfig.from_json(network.config.to_json()) == network.config
