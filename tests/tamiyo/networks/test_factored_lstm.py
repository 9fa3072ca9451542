"""The contract of the network: one op, the same numbers in rollout and update, slots as a set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esper.actions import HEAD_NAMES
from esper.heads import Head, HeadTable
from esper.observation import RUN_SIZE, SLOT_SIZE, features_size
from esper.tamiyo.networks import ActionOutput, FactoredRecurrentActorCritic, action_tree
from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.policy import PolicyInput
from kinds import KINDS

MakeInput = Callable[..., PolicyInput]
Network = FactoredRecurrentActorCritic
PLAIN = HeadTable([Head("move", 3), Head("speed", 4, used_when={"move": (1, 2)})])


def at(inputs: PolicyInput, step: int) -> PolicyInput:
    """One step of a sequence."""
    return inputs.map(lambda x: x[:, step])


def between(inputs: PolicyInput, start: int, end: int) -> PolicyInput:
    """A part of a sequence."""
    return inputs.map(lambda x: x[:, start:end])


def roll(network: Network, inputs: PolicyInput, hidden: Any = None) -> tuple[list[ActionOutput], dict[str, Tensor]]:
    """Act through time; the outputs, and the actions as ``[B, T]``."""
    outputs = []
    with torch.no_grad():
        for step in range(inputs.features.shape[1]):
            outputs.append(network.get_action(*at(inputs, step)[:3], hidden=hidden))
            hidden = outputs[-1].hidden
    return outputs, {name: torch.stack([o.actions[name] for o in outputs], 1) for name in network.heads.names}


def assert_same(network: Network, inputs: PolicyInput, outputs: list[ActionOutput], evaluation: Any) -> None:
    """An evaluation gives what the rollout gave, to 1e-5."""

    def close(evaluated: Tensor, rolled: list[Tensor]) -> None:
        torch.testing.assert_close(evaluated, torch.stack(rolled, 1), atol=1e-5, rtol=0)

    for name in network.heads.names:
        close(evaluation.log_probs[name], [o.log_probs[name] for o in outputs])
        close(evaluation.entropy[name], [o.entropies[name] for o in outputs])
    close(evaluation.values, [o.value for o in outputs])
    close(evaluation.state_values, [o.state_value for o in outputs])
    close(evaluation.op_values, [o.op_values for o in outputs])


# One op


def test_the_example_of_the_contract() -> None:
    network = FactoredRecurrentActorCritic(state_dim=126, num_slots=3)
    masks = dict.fromkeys(HEAD_NAMES)
    output = network.get_action(torch.zeros(1, 126), torch.full((1, 3), -1), masks)
    assert set(output.actions) == set(HEAD_NAMES)
    assert output.op_values.shape == (1, 6)
    assert output.hidden[0].shape == output.hidden[1].shape == (1, 1, 128)


@pytest.mark.parametrize("how", [{}, {"deterministic": True}, {"deterministic": True, "op_share": 0.1}])
def test_one_op_is_the_action_the_value_and_the_condition_over_10_000_rows(
    network: Network, make_input: MakeInput, how: dict[str, Any]
) -> None:
    inputs = make_input(10_000)
    output = network.get_action(*inputs[:3], **how)
    op = output.sampled_op
    rows = torch.arange(10_000)
    assert torch.equal(op, output.actions["op"])
    assert torch.equal(output.value, output.op_values[rows, op])
    assert inputs.masks["op"][rows, op].all()
    assert len(op.unique()) == 6
    # The other heads are conditioned on this op: judged after it, they get the log-probs they were drawn with.
    masks = {name: None if mask is None else mask[:, None] for name, mask in inputs.masks.items()}
    actions = {name: action[:, None] for name, action in output.actions.items()}
    evaluation = network.evaluate_actions(inputs.features[:, None], inputs.blueprint_indices[:, None], actions, masks)
    assert torch.equal(evaluation.used["slot"][:, 0], op != 0)
    for name in HEAD_NAMES:
        torch.testing.assert_close(evaluation.log_probs[name][:, 0], output.log_probs[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(evaluation.values[:, 0], output.value, atol=1e-5, rtol=0)


def test_deterministic_takes_the_likeliest_op(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(500)
    output = network.get_action(*inputs[:3], deterministic=True)
    again = network.get_action(*inputs[:3], deterministic=True)
    likeliest = torch.full((500,), -torch.inf)
    for _ in range(60):
        sampled = network.get_action(*inputs[:3])
        likeliest = torch.maximum(likeliest, sampled.log_probs["op"])
    torch.testing.assert_close(output.log_probs["op"], likeliest, atol=1e-6, rtol=0)
    assert all(torch.equal(output.actions[name], again.actions[name]) for name in HEAD_NAMES)


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 1.0])
def test_the_op_of_the_greatest_q_among_the_probable(network: Network, make_input: MakeInput, share: float) -> None:
    with torch.no_grad():
        network.tree.output.weight.mul_(0.1)  # several ops within a factor of ten of each other
    inputs = make_input(500, allowed=0.8)
    output = network.get_action(*inputs[:3], deterministic=True, op_share=share)
    every = dict.fromkeys(HEAD_NAMES)
    probs = torch.full((500, 6), 0.0)
    for op in range(6):
        allowed = inputs.masks["op"][:, op]
        only = torch.zeros(500, 1, dtype=torch.long) + op
        part = PolicyInput(*(x[allowed, None] for x in inputs[:2]), every | {"op": inputs.masks["op"][allowed, None]})
        actions = {name: torch.zeros(int(allowed.sum()), 1, dtype=torch.long) for name in HEAD_NAMES}
        evaluation = network.evaluate_actions(*part[:2], actions | {"op": only[allowed]}, part.masks)
        probs[allowed, op] = evaluation.log_probs["op"][:, 0].exp().detach()
    expected = []
    for row in range(500):
        probable = [op for op in range(6) if 0 < probs[row, op] >= (share - 1e-6) * probs[row].max()]
        expected.append(max(probable, key=lambda op: output.op_values[row, op].item()))
    assert output.sampled_op.tolist() == expected
    likeliest = probs.argmax(-1)
    changed = int((output.sampled_op != likeliest).sum())
    assert changed == 0 if share == 1 else changed > 50


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(network: Network, make_input: MakeInput, share: float) -> None:
    with pytest.raises(ValueError, match=r"expected op_share in \(0, 1\], got"):
        network.get_action(*make_input(2)[:3], deterministic=True, op_share=share)


def test_the_same_seed_draws_the_same_actions(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(100)
    first, again, other = (
        network.get_action(*inputs[:3], generator=torch.Generator().manual_seed(seed)).actions for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in HEAD_NAMES)
    assert any(not torch.equal(first[name], other[name]) for name in HEAD_NAMES)


def test_the_state_value_is_the_expectation_of_q_over_allowed_ops(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(300)
    output = network.get_action(*inputs[:3])
    expected = torch.zeros(300, dtype=torch.float64)
    masks = {name: None if mask is None else mask[:, None] for name, mask in inputs.masks.items()}
    masks["slot"], masks["blueprint"] = None, None
    mass = torch.zeros(300, dtype=torch.float64)
    for op in range(6):
        allowed = inputs.masks["op"][:, op]
        chosen = torch.where(allowed, op, output.sampled_op)[:, None]
        actions = {name: torch.zeros(300, 1, dtype=torch.int64) for name in HEAD_NAMES} | {"op": chosen}
        masks |= {"style": None, "tempo": None, "alpha_target": None}
        evaluation = network.evaluate_actions(
            inputs.features[:, None], inputs.blueprint_indices[:, None], actions, masks
        )
        probability = evaluation.log_probs["op"][:, 0].double().exp() * allowed
        mass += probability.detach()
        expected += (probability * evaluation.values[:, 0]).detach()
    torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.state_value.double(), expected, atol=1e-5, rtol=0)


# Rollout and update


@pytest.mark.parametrize("options", [*KINDS.values(), {"probability_floor": 0.02}], ids=[*KINDS, "floor"])
def test_an_update_sees_what_the_rollout_saw(
    sharpen: Callable[[Network], Network], make_input: MakeInput, options: dict[str, Any]
) -> None:
    network = sharpen(FactoredRecurrentActorCritic(**options))
    inputs = make_input(5, 12)
    outputs, actions = roll(network, inputs)
    evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
    assert_same(network, inputs, outputs, evaluation)
    log_probs, entropy, values, hidden = evaluation
    assert log_probs is evaluation.log_probs
    assert entropy is evaluation.entropy
    assert values is evaluation.values
    for part, last in zip(hidden, outputs[-1].hidden, strict=True):
        torch.testing.assert_close(part, last, atol=1e-5, rtol=0)


def test_a_sequence_may_start_anywhere_from_its_stored_state(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(4, 10)
    outputs, actions = roll(network, inputs)
    part = {name: action[:, 6:9] for name, action in actions.items()}
    evaluation = network.evaluate_actions(
        *between(inputs, 6, 9)[:2], part, between(inputs, 6, 9).masks, outputs[5].hidden
    )
    assert_same(network, inputs, outputs[6:9], evaluation)
    cold = network.evaluate_actions(*between(inputs, 6, 9)[:2], part, between(inputs, 6, 9).masks)
    assert not torch.allclose(cold.values, evaluation.values, atol=1e-3)


def test_padding_after_a_sequence_changes_nothing(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(3, 8)
    _, actions = roll(network, inputs)
    short = {name: action[:, :5] for name, action in actions.items()}
    part = between(inputs, 0, 5)
    whole = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
    cut = network.evaluate_actions(part.features, part.blueprint_indices, short, part.masks)
    for name in HEAD_NAMES:
        torch.testing.assert_close(whole.log_probs[name][:, :5], cut.log_probs[name], atol=1e-6, rtol=0)


def laid_out(inputs: PolicyInput, actions: dict[str, Tensor]) -> tuple[PolicyInput, dict[str, Tensor], Tensor]:
    """The sequences of a batch one after the other in a single line, with a gap after each."""

    def line(x: Tensor) -> Tensor:
        return torch.cat([x, x[:, -1:]], dim=1).flatten(0, 1).unsqueeze(0)

    masks = {name: None if mask is None else line(mask) for name, mask in inputs.masks.items()}
    gaps = torch.zeros(inputs.features.shape[0], inputs.features.shape[1] + 1, dtype=torch.bool)
    gaps[:, -1] = True
    in_line = PolicyInput(line(inputs.features), line(inputs.blueprint_indices), masks)
    return in_line, {name: line(action) for name, action in actions.items()}, gaps.view(1, -1)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_sequences_with_gaps_between_them_stay_apart(
    sharpen: Callable[[Network], Network], make_input: MakeInput, options: dict[str, Any]
) -> None:
    network = sharpen(FactoredRecurrentActorCritic(**options))
    inputs = make_input(4, 6)
    outputs, actions = roll(network, inputs)
    line, line_actions, gaps = laid_out(inputs, actions)
    evaluation = network.evaluate_actions(line.features, line.blueprint_indices, line_actions, line.masks, None, gaps)
    for name in HEAD_NAMES:
        rolled = torch.stack([o.log_probs[name] for o in outputs], 1)
        evaluated = evaluation.log_probs[name].view(4, 7)[:, :6]
        torch.testing.assert_close(evaluated, rolled, atol=1e-5, rtol=0)
    values = torch.stack([o.value for o in outputs], 1)
    torch.testing.assert_close(evaluation.values.view(4, 7)[:, :6], values, atol=1e-5, rtol=0)
    assert all((part == 0).all() for part in evaluation.hidden)


def test_no_gradient_crosses_a_gap(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(2, 5)
    _, actions = roll(network, inputs)
    line, line_actions, gaps = laid_out(inputs, actions)
    states = line.features.clone().requires_grad_()
    evaluation = network.evaluate_actions(states, line.blueprint_indices, line_actions, line.masks, None, gaps)
    (gradient,) = torch.autograd.grad(evaluation.values[:, 6:].sum(), states)
    assert (gradient[:, :6] == 0).all()
    assert (gradient[:, 6:11] != 0).any(-1).all()


def test_another_table_without_slots_is_an_ordinary_recurrent_policy() -> None:
    network = FactoredRecurrentActorCritic(state_dim=4, num_slots=0, heads=PLAIN)
    assert network.slot_encoder is None
    mask = torch.rand(6, 9, 4) < 0.6
    mask[..., 1] = True
    inputs = PolicyInput(torch.randn(6, 9, 4), None, {"move": None, "speed": mask})
    outputs, actions = roll(network, inputs)
    evaluation = network.evaluate_actions(inputs.features, None, actions, inputs.masks)
    assert_same(network, inputs, outputs, evaluation)
    assert torch.equal(outputs[0].sampled_op, outputs[0].actions["move"])
    empty = torch.zeros(6, 9, 0, dtype=torch.int64)
    again = network.evaluate_actions(inputs.features, empty, actions, inputs.masks)
    assert torch.equal(again.values, evaluation.values)


def test_memory_matters_where_there_is_one(make_input: MakeInput) -> None:
    for memory, outputs, cells in (("lstm", 1, 1), ("gru", 1, 0), ("none", 0, 0)):
        network = FactoredRecurrentActorCritic(memory=memory)
        inputs = make_input(4)
        first = network.get_action(*inputs[:3])
        second = network.get_action(*inputs[:3], hidden=first.hidden)
        assert torch.equal(first.op_values, second.op_values) == (memory == "none")
        assert [tuple(part.shape) for part in first.hidden] == [(outputs, 4, 128), (cells, 4, 128)]


def test_one_step_of_a_batch_does_not_depend_on_the_other_rows(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(16)
    whole = network.get_action(*inputs[:3], deterministic=True)
    masks = {name: None if mask is None else mask[3:4] for name, mask in inputs.masks.items()}
    alone = network.get_action(inputs.features[3:4], inputs.blueprint_indices[3:4], masks, deterministic=True)
    torch.testing.assert_close(alone.op_values[0], whole.op_values[3], atol=1e-5, rtol=0)
    assert all(alone.actions[name][0] == whole.actions[name][3] for name in HEAD_NAMES)


# Gradients


def test_values_train_the_q_of_the_stored_op_and_leave_the_policy_heads_alone(
    network: Network, make_input: MakeInput
) -> None:
    inputs = make_input(8, 3)
    _, actions = roll(network, inputs)
    for pick in ("values", "state_values"):
        network.zero_grad()
        evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
        getattr(evaluation, pick).sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in network.tree.parameters()), pick
        assert (network.critic.weight.grad != 0).any()
        assert (network.encoder.weight.grad != 0).any()


def test_gradients_reach_every_part(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(64, 4)
    _, actions = roll(network, inputs)
    evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
    (sum(x.sum() for x in evaluation.log_probs.values()) + evaluation.values.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


def test_logits_masked_in_every_row_get_exactly_zero_gradient(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(32, 4)
    inputs.masks["op"][..., 3] = False
    inputs.masks["op"][..., 1] = True
    inputs.masks["style"] = torch.tensor([True, False, True]).expand(32, 4, 3)
    _, actions = roll(network, inputs)
    evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
    loss = sum(evaluation.log_probs[h].sum() + evaluation.entropy[h].pow(2).sum() for h in HEAD_NAMES)
    loss.backward()
    bias = dict(zip(HEAD_NAMES, network.tree.output.bias.grad.split(network.tree.output_sizes), strict=True))
    assert bias["op"][3] == 0
    assert bias["style"][1] == 0
    assert (bias["op"][[1, 2]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_autocast(network: Network, make_input: MakeInput, dtype: torch.dtype) -> None:
    inputs = make_input(16, 4)
    with torch.autocast("cpu", dtype=dtype):
        # Autocast keeps low-precision weights; made without gradients, they must not be used for the update.
        _, actions = roll(network, inputs)
        evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
        loss = sum(x.sum() for x in evaluation.log_probs.values()) + evaluation.values.pow(2).sum()
    assert evaluation.values.dtype == torch.float32
    assert all(x.dtype == torch.float32 for x in evaluation.log_probs.values())
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


def test_autocast_weights_made_without_gradients_are_dropped(
    network: Network, make_input: MakeInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer PyTorch does not need it; older PyTorch would train nothing."""
    dropped: list[bool] = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: dropped.append(True))
    inputs = make_input(2)
    with torch.no_grad():
        network.get_action(*inputs[:3])
        assert not dropped
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network.get_action(*inputs[:3])
            network.state_value(*inputs[:3])
            assert len(dropped) == 2


def test_without_gradients_the_results_are_ordinary_tensors(network: Network, make_input: MakeInput) -> None:
    action_tree.layout.cache_clear()
    action_tree.only_first.cache_clear()
    inputs = make_input(6)
    with torch.no_grad():
        output = network.get_action(*inputs[:3])
    tensors = [*output.actions.values(), *output.log_probs.values(), *output.entropies.values(), *output.hidden]
    for tensor in (*tensors, output.value, output.state_value, output.op_values, output.sampled_op):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    # Nothing that was made and kept in inference mode gets into training either.
    masks = {name: None if mask is None else mask[:, None] for name, mask in inputs.masks.items()}
    actions = {name: action[:, None] for name, action in output.actions.items()}
    evaluation = network.evaluate_actions(
        inputs.features[:, None],
        inputs.blueprint_indices[:, None],
        actions,
        masks,
        output.hidden,
    )
    (evaluation.values.sum() + sum(x.sum() for x in evaluation.entropy.values())).backward()


def test_get_action_carries_gradients_where_they_are_enabled(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(6)
    output = network.get_action(*inputs[:3])
    (output.value.sum() + sum(x.sum() for x in output.log_probs.values())).backward()
    assert (network.encoder.weight.grad != 0).any()


# Slots are a set


def permuted(inputs: PolicyInput, order: Tensor) -> PolicyInput:
    """The same run with its slots in another order."""
    assert inputs.blueprint_indices is not None
    *batch, slots = inputs.blueprint_indices.shape
    run, rest = inputs.features[..., :RUN_SIZE], inputs.features[..., RUN_SIZE:]
    rest = rest.view(*batch, slots, SLOT_SIZE)[..., order, :].flatten(-2)
    masks = dict(inputs.masks)
    masks["slot"] = masks["slot"][..., order]
    masks["blueprint"] = masks["blueprint"][..., order, :]
    return PolicyInput(torch.cat([run, rest], -1), inputs.blueprint_indices[..., order], masks)


@pytest.mark.parametrize("slots", [3, 8])
def test_permuting_the_slots_permutes_the_answer(network: Network, make_input: MakeInput, slots: int) -> None:
    inputs = make_input(20, 4, slots=slots)
    _, actions = roll(network, inputs)
    order = torch.randperm(slots)
    place = order.argsort()
    evaluation = network.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks)
    moved = permuted(inputs, order)
    used = evaluation.used["slot"]
    moved_actions = actions | {"slot": torch.where(used, place[actions["slot"]], 0)}
    again = network.evaluate_actions(moved.features, moved.blueprint_indices, moved_actions, moved.masks)
    assert used.any()
    for name in HEAD_NAMES:
        torch.testing.assert_close(again.log_probs[name], evaluation.log_probs[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(again.entropy[name], evaluation.entropy[name], atol=1e-5, rtol=0)
    torch.testing.assert_close(again.state_values, evaluation.state_values, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.op_values, evaluation.op_values, atol=1e-5, rtol=0)


def test_one_set_of_weights_runs_any_number_of_slots(network: Network, make_input: MakeInput) -> None:
    for slots in (1, 3, 24):
        other = FactoredRecurrentActorCritic(state_dim=features_size(slots), num_slots=slots)
        other.load_state_dict(network.state_dict())
        inputs = make_input(4, 5, slots=slots)
        outputs, actions = roll(network, inputs)
        assert_same(
            other,
            inputs,
            outputs,
            other.evaluate_actions(inputs.features, inputs.blueprint_indices, actions, inputs.masks),
        )
        assert slots == 1 or (actions["slot"] > 0).any()


def test_the_answer_depends_on_the_slot_and_its_blueprint(network: Network, make_input: MakeInput) -> None:
    inputs = make_input(1)
    base = network.get_action(*inputs[:3], deterministic=True).op_values
    assert inputs.blueprint_indices is not None
    seen = {
        tuple(network.get_action(inputs.features, torch.tensor([[b, -1, 4]]), inputs.masks).op_values[0].tolist())
        for b in range(-1, 13)
    }
    assert len(seen) == 14
    features = inputs.features.clone()
    features[0, -1] += 1.0
    assert not torch.equal(network.get_action(features, inputs.blueprint_indices, inputs.masks).op_values, base)


# Construction


def test_config_builds_the_same_network() -> None:
    network = FactoredRecurrentActorCritic(
        state_dim=7,
        num_slots=0,
        heads=PLAIN,
        hidden_dim=32,
        head_dim=16,
        memory="none",
        probability_floor={"move": 0.1},
    )
    config = NetworkConfig.from_json(json.loads(json.dumps(network.config.to_json())))
    assert config == network.config
    twin = FactoredRecurrentActorCritic(config)
    twin.load_state_dict(network.state_dict())
    assert twin.heads == PLAIN
    assert FactoredRecurrentActorCritic(config, hidden_dim=8).config == replace(config, hidden_dim=8)


def test_a_network_takes_slots_of_any_size_and_any_number_of_blueprints() -> None:
    """Nothing in it is growth's: other heads, 5 numbers about a slot, 2 blueprints."""
    heads = HeadTable([Head("verb", 2), Head("place", 0, parent="verb", used_when={"verb": (1,)})])
    config = NetworkConfig(
        heads=heads, state_dim=3 + 5 * 4, num_slots=4, slot_size=5, num_blueprints=2, unknown=0.5, standardize=True
    )
    network = FactoredRecurrentActorCritic(config)
    states, blueprints = torch.randn(6, 23), torch.randint(-1, 2, (6, 4))
    states[:, 1] = 0.5
    network.standardizer.update(states)
    assert network.standardizer.count.tolist() == [6, 0, 6, *[24] * 5]
    output = network.get_action(states, blueprints, dict.fromkeys(heads.names))
    assert (output.actions["place"] < 4).all()
    with pytest.raises(ValueError, match=r"must be from -1 \(empty slot\) to 1, got 2"):
        network.get_action(states, blueprints + 3 * (blueprints < 0), dict.fromkeys(heads.names))


def test_sizes_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="expected a NetworkConfig, got int; give sizes by name"):
        FactoredRecurrentActorCritic(126)


@pytest.mark.parametrize("path", sorted(Path(action_tree.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_the_networks_know_nothing_of_what_growth_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "esper.observation" not in text
    assert "esper.actions" not in text


def test_the_first_policy_is_nearly_uniform(make_input: MakeInput) -> None:
    inputs = make_input(64)
    free = dict.fromkeys(HEAD_NAMES)
    log_probs = FactoredRecurrentActorCritic().get_action(inputs.features, inputs.blueprint_indices, free).log_probs
    uniform = torch.tensor(6.0).log()
    torch.testing.assert_close(log_probs["op"], -uniform.expand(64), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"state_dim": 100, "num_slots": 3}, "at least 34 numbers for each of num_slots slots"),
        ({"num_slots": -1}, "got state_dim=126 and num_slots=-1"),
        ({"slot_size": 0}, "expected a slot_size of 1 or more where there are slots"),
        ({"state_dim": 24, "num_slots": 0}, "heads .'slot'. point at slots, but num_slots is 0"),
        ({"probability_floor": 0.2}, "head 'op': expected a probability_floor from 0 to below 0.167, got 0.2"),
        ({"probability_floor": {"style": -0.1}}, "head 'style'"),
        ({"probability_floor": {"styel": 0.1}}, "unknown heads .'styel'."),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FactoredRecurrentActorCritic(**arguments)


class _Count(TorchDispatchMode):
    """Counts the operations that reach the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("standardize", [False, True])
def test_a_rollout_step_stays_small(standardize: bool, make_input: MakeInput) -> None:
    """Small tensors cost by the operation. This count is the machine-independent half of "at most 1 ms at B=16"."""
    network = FactoredRecurrentActorCritic(standardize=standardize)
    inputs = make_input(16)
    hidden = network.initial_hidden(16)
    with torch.no_grad(), _Count() as count:
        network.get_action(*inputs[:3], hidden=hidden)
    assert count.operations <= 190
