"""Dependent heads: which are used, what conditions them, and that unused ones have no influence."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from esper.actions import HEADS
from esper.heads import Head, HeadTable
from esper.lifecycle import Op
from esper.tamiyo.networks import Evaluation, FactoredRecurrentActorCritic
from esper.tamiyo.networks.action_tree import HeadNetwork
from esper.tamiyo.policy import PolicyInput

MakeInput = Callable[..., PolicyInput]
Network = FactoredRecurrentActorCritic


def evaluate(network: Network, inputs: PolicyInput, actions: dict[str, Tensor]) -> Evaluation:
    """Evaluate single steps ``[B]`` as sequences of one."""
    masks = {name: None if mask is None else mask[:, None] for name, mask in inputs.masks.items()}
    assert inputs.blueprint_indices is not None
    single = {name: action[:, None] for name, action in actions.items()}
    return network.evaluate_actions(inputs.features[:, None], inputs.blueprint_indices[:, None], single, masks)


def used_by_table(choices: dict[str, int], heads: HeadTable = HEADS) -> set[str]:
    """The heads that a whole action uses, read from the table one row after the other."""
    used: set[str] = set()
    for head in heads:
        parent_used = head.parent is None or head.parent in used
        taken = all(a in used and choices[a] in {int(c) for c in allowed} for a, allowed in head.used_when.items())
        if parent_used and taken:
            used.add(head.name)
    return used


def test_the_heads_an_op_uses_are_those_of_the_table(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(500)
    output = network.get_action(*inputs[:3])
    evaluation = evaluate(network, inputs, output.actions)
    for row in range(500):
        choices = {name: int(action[row]) for name, action in output.actions.items()}
        used = used_by_table(choices)
        for name in HEADS.names:
            assert bool(evaluation.used[name][row, 0]) == (name in used)
            if name not in used:
                assert choices[name] == 0
                assert output.log_probs[name][row] == 0
                assert output.entropies[name][row] == 0
    assert {int(op) for op in output.sampled_op} == set(range(6))


def test_every_choice_is_allowed_given_its_parent(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(2000)
    for deterministic in (False, True):
        actions = network.get_action(*inputs[:3], deterministic=deterministic).actions
        for row in range(2000):
            choices = {name: int(action[row]) for name, action in actions.items()}
            for head in HEADS:
                mask = inputs.masks[head.name]
                if mask is None or head.name not in used_by_table(choices):
                    continue
                allowed = mask[row, choices[head.parent]] if mask.ndim == 3 and head.parent else mask[row]
                assert allowed[choices[head.name]], (head.name, choices)


def test_could_matter_counts_used_heads_with_more_than_one_choice(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(500)
    output = network.get_action(*inputs[:3])
    evaluation = evaluate(network, inputs, output.actions)
    for name in HEADS.names:
        entropy = evaluation.entropy[name]
        assert torch.equal(evaluation.could_matter[name], entropy > 0), name
        assert not (evaluation.could_matter[name] & ~evaluation.used[name]).any()
        assert torch.equal(output.entropies[name], entropy[:, 0].detach())


GROUPS = {
    Op.WAIT: {"op"},
    Op.GERMINATE: {"op", "slot", "blueprint", "style"},
    Op.ADVANCE: {"op", "slot", "tempo", "curve", "alpha_target"},
    Op.PRUNE: {"op", "slot", "tempo", "curve"},
    Op.FOSSILIZE: {"op", "slot"},
}


@pytest.mark.parametrize("op", GROUPS)
def test_unused_heads_get_exactly_zero_gradient(network: Network, make_input: MakeInput, op: Op) -> None:
    inputs = make_input(64)
    inputs.masks["op"] = torch.arange(6).expand(64, 6) == op
    output = network.get_action(*inputs[:3])
    evaluation = evaluate(network, inputs, output.actions)
    loss = sum(evaluation.log_probs[name].pow(2).sum() + evaluation.entropy[name].sum() for name in HEADS.names)
    assert isinstance(loss, Tensor)
    loss.backward()
    hidden = network.tree.hidden.weight.grad.split(network.tree.hidden_sizes)
    outputs = network.tree.output.weight.grad.split(network.tree.output_sizes)
    biases = network.tree.output.bias.grad.split(network.tree.output_sizes)
    for index, head in enumerate(HEADS):
        module = network.tree.heads[index]
        own = [p.grad for p in module.parameters() if p.grad is not None]
        if head.name not in GROUPS[op]:
            assert all((gradient == 0).all() for gradient in (hidden[index], outputs[index], biases[index], *own)), head
        elif head.name != "op":
            assert (hidden[index] != 0).any()
            assert (outputs[index] != 0).any()


def test_what_is_stored_for_an_unused_head_is_not_read(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(200)
    actions = network.get_action(*inputs[:3]).actions
    evaluation = evaluate(network, inputs, actions)
    garbled = {
        name: torch.where(evaluation.used[name][:, 0], action, HEADS.sizes(3)[name] - 1)
        for name, action in actions.items()
    }
    assert any(not torch.equal(garbled[name], actions[name]) for name in HEADS.names)
    again = evaluate(network, inputs, garbled)
    for name in HEADS.names:
        assert torch.equal(evaluation.log_probs[name], again.log_probs[name])
        assert torch.equal(evaluation.entropy[name], again.entropy[name])


def reference_log_probs(network: Network, inputs: PolicyInput, row: int, choices: dict[str, int], floor: float) -> dict:
    """Log-probabilities of one action from the weights, one head after the other, with no batch and no tricks."""
    tree, sizes = network.tree, HEADS.sizes(3)
    assert inputs.blueprint_indices is not None
    (core, _, slots, _), _ = network._core(
        inputs.features[row : row + 1, None],
        inputs.blueprint_indices[row : row + 1, None],
        network.initial_hidden(1),
        {},
    )
    assert slots is not None
    used = used_by_table(choices)
    weights = tree.hidden.weight.split(tree.hidden_sizes)
    outputs, output_biases = tree.output.weight.split(tree.output_sizes), tree.output.bias.split(tree.output_sizes)
    biases = tree.hidden.bias.split(tree.hidden_sizes)
    results = {}
    for index, head in enumerate(HEADS):
        if head.name not in used:
            results[head.name] = 0.0
            continue
        hidden = weights[index] @ core[0] + biases[index]
        for before, earlier in enumerate(HEADS[:index]):
            module = tree.heads[before]
            assert isinstance(module, HeadNetwork)
            if earlier.name in used and module.conditioning is not None:
                seen = torch.tensor(choices[earlier.name])
                given = module.conditioning(slots[0, seen] if earlier.points_at_slots else seen)
                size = len(biases[index])
                hidden = hidden + given[(index - before - 1) * size : (index - before) * size]
        logits = outputs[index] @ hidden.clamp(min=0) + output_biases[index]
        module = tree.heads[index]
        assert isinstance(module, HeadNetwork)
        if module.key is not None:
            logits = torch.stack([logits @ module.key(slot) / math.sqrt(len(slot)) for slot in slots[0]])
        mask = inputs.masks[head.name]
        allowed = range(sizes[head.name])
        if mask is not None:
            line = mask[row, choices[head.parent]] if mask.ndim == 3 and head.parent else mask[row]
            allowed = [choice for choice in allowed if line[choice]]
        total = sum(math.exp(logits[choice].item()) for choice in allowed)
        probability = math.exp(logits[choices[head.name]].item()) / total
        results[head.name] = math.log(floor + (1 - len(allowed) * floor) * probability)
    return results


@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_log_probs_equal_a_slow_reference(sharpen: Callable, make_input: MakeInput, floor: float) -> None:
    network = sharpen(FactoredRecurrentActorCritic(probability_floor=floor))
    inputs = make_input(40)
    with torch.no_grad():
        output = network.get_action(*inputs[:3])
        for row in range(40):
            choices = {name: int(action[row]) for name, action in output.actions.items()}
            expected = reference_log_probs(network, inputs, row, choices, floor)
            for name in HEADS.names:
                assert output.log_probs[name][row].item() == pytest.approx(expected[name], abs=2e-5), (row, name)


def test_the_floor_holds_in_every_used_head(sharpen: Callable, make_input: MakeInput) -> None:
    floors = {"op": 0.05, "blueprint": 0.02}
    network = sharpen(FactoredRecurrentActorCritic(probability_floor=floors))
    with torch.no_grad():
        network.tree.output.weight.mul_(100.0)
    inputs = make_input(3000)
    log_probs = network.get_action(*inputs[:3]).log_probs
    for name, floor in floors.items():
        least = log_probs[name].exp().min()
        assert floor * 0.999 < least < floor * 1.5


NESTED = HeadTable(
    [
        Head("verb", 4),
        Head("object", 3, parent="verb", used_when={"verb": (1, 2, 3)}),
        Head("manner", 2, parent="object", used_when={"object": (0, 2)}),
        Head("place", 5, used_when={"verb": (0, 3), "manner": (1,)}),
        Head("loud", 2),
        Head("never", 2, used_when={"verb": ()}),
    ]
)


def test_a_table_with_conditions_on_several_ancestors() -> None:
    network = FactoredRecurrentActorCritic(state_dim=5, num_slots=0, heads=NESTED, hidden_dim=16, head_dim=8)
    masks: dict[str, Tensor | None] = dict.fromkeys(NESTED.names)
    masks["manner"] = torch.rand(400, 3, 2) < 0.7
    masks["manner"][..., 0] = True
    states = torch.randn(400, 5)
    output = network.get_action(states, None, masks)
    sequences = {name: None if mask is None else mask[:, None] for name, mask in masks.items()}
    actions = {name: action[:, None] for name, action in output.actions.items()}
    evaluation = network.evaluate_actions(states[:, None], None, actions, sequences)
    for row in range(400):
        choices = {name: int(action[row]) for name, action in output.actions.items()}
        used = used_by_table(choices, NESTED)
        assert {name for name in NESTED.names if evaluation.used[name][row, 0]} == used
        assert {"verb", "loud"} <= used
        assert "never" not in used
    assert evaluation.used["place"].any()
    for name in NESTED.names:
        torch.testing.assert_close(evaluation.log_probs[name][:, 0], output.log_probs[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("names", [("items", "training"), ("a.b", "keys"), ("", "0")])
def test_heads_may_have_any_name(names: tuple[str, str]) -> None:
    table = HeadTable([Head(names[0], 2), Head(names[1], 2, used_when={names[0]: (1,)})])
    network = FactoredRecurrentActorCritic(state_dim=3, num_slots=0, heads=table)
    assert set(network.get_action(torch.randn(4, 3), None, dict.fromkeys(names)).actions) == set(names)


def test_later_heads_learn_to_depend_on_earlier_choices() -> None:
    """Two heads are rewarded when the second equals a permutation of the first, whatever the first is."""
    table = HeadTable([Head("first", 4), Head("second", 4)])
    network = FactoredRecurrentActorCritic(state_dim=2, num_slots=0, heads=table)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    permutation = torch.tensor([2, 0, 3, 1])
    masks: dict[str, Tensor | None] = dict.fromkeys(table.names)
    for _ in range(150):
        output = network.get_action(torch.zeros(256, 2), None, masks)
        reward = (output.actions["second"] == permutation[output.actions["first"]]).float()
        # The first head stays uniform: only the second is taught.
        loss = -((reward - reward.mean()) * output.log_probs["second"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = network.get_action(torch.zeros(256, 2), None, masks)
    assert len(output.actions["first"].unique()) == 4
    assert (output.actions["second"] == permutation[output.actions["first"]]).float().mean() > 0.95


def test_a_head_conditions_only_heads_that_can_be_used_with_it(network: Network) -> None:
    conditions = {head.name: network.tree.heads[index].conditioning is not None for index, head in enumerate(HEADS)}
    # Nothing after style is used by GERMINATE, and nothing comes after alpha_target.
    assert conditions == {name: name not in ("style", "alpha_target") for name in HEADS.names}
