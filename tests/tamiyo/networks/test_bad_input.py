"""Bad input is a ValueError that names the thing; nothing becomes a NaN or an error from three libraries down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.actions import HEAD_NAMES, HEADS
from esper.heads import Head, HeadTable
from esper.tamiyo.networks import FactoredRecurrentActorCritic, checks
from esper.tamiyo.policy import PolicyInput

MakeInput = Callable[..., PolicyInput]
Arguments = dict[str, Any]

NETWORK = FactoredRecurrentActorCritic(hidden_dim=16, slot_dim=8, head_dim=8)
several = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def step(make_input: MakeInput) -> Callable[[int], Arguments]:
    """``step(batch)``: good arguments of ``get_action``."""

    def make(batch: int) -> Arguments:
        inputs = make_input(batch)
        return {
            "state": inputs.features,
            "blueprint_indices": inputs.blueprint_indices,
            "masks": dict(inputs.masks),
            "hidden": NETWORK.initial_hidden(batch),
        }

    return make


@pytest.fixture
def sequences(make_input: MakeInput) -> Callable[[int, int], Arguments]:
    """``sequences(batch, steps)``: good arguments of ``evaluate_actions``."""

    def make(batch: int, steps: int) -> Arguments:
        inputs = make_input(batch, steps)
        flat = {name: None if mask is None else mask.flatten(0, 1) for name, mask in inputs.masks.items()}
        assert inputs.blueprint_indices is not None
        output = NETWORK.get_action(inputs.features.flatten(0, 1), inputs.blueprint_indices.flatten(0, 1), flat)
        return {
            "states": inputs.features,
            "blueprint_indices": inputs.blueprint_indices,
            "actions": {name: action.view(batch, steps) for name, action in output.actions.items()},
            "masks": dict(inputs.masks),
            "hidden": NETWORK.initial_hidden(batch),
        }

    return make


@several
@given(batch=st.integers(1, 4), data=st.data(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_numbers_that_are_not_finite(step: Any, batch: int, data: st.DataObject, value: float) -> None:
    arguments = step(batch)
    row, column = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, 125))
    arguments["state"][row, column] = value
    for call in (NETWORK.get_action, NETWORK.state_value):
        with pytest.raises(ValueError, match=rf"state must be finite, got {value} at index \[{row}, {column}\]"):
            call(**arguments)


def test_numbers_too_large_for_the_network() -> None:
    network = FactoredRecurrentActorCritic(
        state_dim=5, num_slots=0, heads=HeadTable([Head("action", 3)])
    )  # with slots it would be clipped
    state = torch.zeros(3, 5)
    state[1] = 3e38  # the sum is infinite, every number is finite
    checks.check_finite("state", state)
    with pytest.raises(ValueError, match="network's output for batch row 1 is not finite; what it was given is too la"):
        network.get_action(state, None, {"action": None})


@several
@given(batch=st.integers(1, 4), shape=st.lists(st.integers(0, 130), max_size=4))
def test_states_of_another_shape(step: Any, sequences: Any, batch: int, shape: list[int]) -> None:
    arguments = step(batch)
    if len(shape) != 2 or shape[1] != 126 or shape[0] == 0:
        with pytest.raises(ValueError, match=r"expected state of shape \[B, 126\], got"):
            NETWORK.get_action(**(arguments | {"state": torch.zeros(shape)}))
    if len(shape) != 3:
        with pytest.raises(ValueError, match=r"expected states of shape \[B, T, 126\], got"):
            NETWORK.evaluate_actions(**(sequences(batch, 2) | {"states": torch.zeros(shape)}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_states_of_another_type(step: Any, dtype: torch.dtype) -> None:
    arguments = step(2)
    with pytest.raises(ValueError, match=r"expected state of type torch.float32, got .*use state.to\(torch.float32\)"):
        NETWORK.get_action(**(arguments | {"state": arguments["state"].to(dtype)}))


@several
@given(batch=st.integers(1, 4), index=st.integers(-40, 40), data=st.data())
def test_blueprints_out_of_range(step: Any, batch: int, index: int, data: st.DataObject) -> None:
    arguments = step(batch)
    arguments["blueprint_indices"][data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, 2))] = index
    if -1 <= index < 13:
        NETWORK.get_action(**arguments)
    else:
        with pytest.raises(ValueError, match=rf"blueprint_indices must be from -1 \(empty slot\) to 12, got {index}"):
            NETWORK.get_action(**arguments)


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        (None, r"blueprint_indices are missing: a network with slots .* int64 \[B, S\]"),
        (torch.zeros(2, 3), "expected blueprint_indices of type torch.int64, got torch.float32"),
        (torch.zeros(3, 3).long(), r"expected blueprint_indices of shape \[2, S\], got \[3, 3\]"),
        (torch.zeros(2, 1, 3).long(), r"expected blueprint_indices of shape \[2, S\], got \[2, 1, 3\]"),
        (torch.zeros(2, 4).long(), r"expected state of shape \[B, 160\], got \[2, 126\]"),
    ],
)
def test_blueprints_of_another_kind(step: Any, indices: Tensor | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NETWORK.get_action(**(step(2) | {"blueprint_indices": indices}))


def in_inference_mode(x: Any) -> Any:
    """The same values in tensors made in inference mode."""
    with torch.inference_mode():
        return tuple(part.clone() for part in x) if isinstance(x, tuple) else x.clone()


@pytest.mark.parametrize("name", ["state", "hidden", "mask"])
def test_what_was_made_in_inference_mode_is_named_where_gradients_are_recorded(name: str) -> None:
    """PyTorch's own error says neither which tensor it was nor how to go on."""
    heads = HeadTable([Head("move", 2)])
    network = FactoredRecurrentActorCritic(state_dim=3, num_slots=0, heads=heads, hidden_dim=8, head_dim=4)
    given = {"state": torch.randn(2, 3), "hidden": network.initial_hidden(2), "mask": torch.ones(2, 2).bool()}
    given[name] = in_inference_mode(given[name])
    arguments = (given["state"], None, {"move": given["mask"]}, given["hidden"])
    says = "the mask of head 'move'" if name == "mask" else name
    with pytest.raises(ValueError, match=f"{says} was made in inference mode, .* under torch.no_grad"):
        network.get_action(*arguments)
    with torch.no_grad():
        network.get_action(*arguments)
    network.requires_grad_(False).get_action(*arguments)


def test_a_network_with_slots_learns_from_observations_made_in_inference_mode(step: Any) -> None:
    """It copies them on the way, so nothing is refused that PyTorch would take."""
    arguments = step(2)
    made = {name: in_inference_mode(arguments[name]) for name in ("state", "blueprint_indices")}
    output = NETWORK.get_action(**(arguments | made))
    (output.value.sum() + sum(x.sum() for x in output.log_probs.values())).backward()


def test_a_network_without_slots_takes_no_blueprints() -> None:
    network = FactoredRecurrentActorCritic(state_dim=34, num_slots=0, heads=HeadTable([Head("move", 2)]))
    with pytest.raises(ValueError, match="expected no blueprint_indices for a network without slots"):
        network.get_action(torch.zeros(2, 68), torch.zeros(2, 1).long(), {"move": None})


@several
@given(name=st.sampled_from(HEAD_NAMES), data=st.data())
def test_masks_of_another_shape_or_type(step: Any, name: str, data: st.DataObject) -> None:
    arguments = step(3)
    size = HEADS.sizes(3)[name]
    shape = tuple(data.draw(st.lists(st.integers(1, 7), max_size=4)))
    head = HEADS.named(name)
    good = {(3, size), (3, HEADS.sizes(3)[head.parent], size)} if head.parent else {(3, size)}
    if shape not in good:
        arguments["masks"][name] = torch.ones(shape, dtype=torch.bool)
        with pytest.raises(ValueError, match=f"head '{name}': expected a bool mask of shape"):
            NETWORK.get_action(**arguments)
    arguments["masks"][name] = torch.ones(3, size)
    with pytest.raises(ValueError, match=f"head '{name}': expected a bool mask .*got torch.float32"):
        NETWORK.get_action(**arguments)


def test_masks_that_miss_a_head_or_name_another(step: Any) -> None:
    arguments = step(2)
    for masks in ({}, {"op": None}, {**arguments["masks"], "sloth": None}):
        with pytest.raises(ValueError, match=r"expected a mask .or None. for each of the heads"):
            NETWORK.get_action(**(arguments | {"masks": masks}))


@several
@given(batch=st.integers(1, 5), data=st.data(), name=st.sampled_from(["op", "slot", "blueprint", "tempo"]))
def test_a_used_head_without_an_allowed_choice(step: Any, batch: int, data: st.DataObject, name: str) -> None:
    arguments = step(batch)
    row = data.draw(st.integers(0, batch - 1))
    op = {"op": 0, "slot": 5, "blueprint": 1, "tempo": 4}[name]
    arguments["masks"]["op"][row] = torch.arange(6) == op
    arguments["masks"][name][row] = False
    says = f"head '{name}': the mask of batch row {row} allows no choice, but the head is used"
    for deterministic in (True, False):
        with pytest.raises(ValueError, match=says):
            NETWORK.get_action(**arguments, deterministic=deterministic)
    if name == "op":
        with pytest.raises(ValueError, match=says):
            NETWORK.state_value(**arguments)


@several
@given(batch=st.integers(1, 3), steps=st.integers(1, 3), data=st.data())
def test_a_stored_action_that_was_masked_out(sequences: Any, batch: int, steps: int, data: st.DataObject) -> None:
    arguments = sequences(batch, steps)
    row, step = data.draw(st.integers(0, batch - 1)), data.draw(st.integers(0, steps - 1))
    name = data.draw(st.sampled_from(["op", "slot", "blueprint"]))
    arguments["actions"]["op"][row, step] = 1
    slot = arguments["actions"]["slot"][row, step]
    for head in ("op", "slot", "blueprint", "style"):
        arguments["masks"][head][row, step] = True
    NETWORK.evaluate_actions(**arguments)
    where = {"op": (), "slot": (1,), "blueprint": (slot,)}[name]
    choice = int(arguments["actions"][name][row, step])
    arguments["masks"][name][(row, step, *where, choice)] = False
    arguments["masks"][name][(row, step, *where, (choice + 1) % HEADS.sizes(3)[name])] = True
    says = f"head '{name}': the stored action {choice} of batch row {row}, step {step} is masked out"
    with pytest.raises(ValueError, match=says):
        NETWORK.evaluate_actions(**arguments)


@several
@given(name=st.sampled_from(HEAD_NAMES), choice=st.integers(-20, 20))
def test_a_stored_action_outside_its_head(sequences: Any, name: str, choice: int) -> None:
    arguments = sequences(2, 3)
    size = HEADS.sizes(3)[name]
    if 0 <= choice < size:
        return
    arguments["actions"][name][1, 2] = choice
    with pytest.raises(ValueError, match=f"head '{name}': a stored action must be from 0 to {size - 1}, got {choice}"):
        NETWORK.evaluate_actions(**arguments)


def test_stored_actions_of_another_shape_type_or_heads(sequences: Any) -> None:
    arguments = sequences(2, 3)
    actions = arguments["actions"]
    for wrong in (actions["style"].float(), actions["style"][:, :2], actions["style"].flatten()):
        with pytest.raises(ValueError, match=r"head 'style': expected actions of type torch.int64 and shape"):
            NETWORK.evaluate_actions(**(arguments | {"actions": {**actions, "style": wrong}}))
    with pytest.raises(ValueError, match="expected stored actions for the heads"):
        NETWORK.evaluate_actions(**(arguments | {"actions": {"op": actions["op"]}}))


@pytest.mark.parametrize("gaps", [torch.zeros(2, 3), torch.zeros(2, 4).bool(), torch.zeros(6).bool()])
def test_gaps_of_another_shape_or_type(sequences: Any, gaps: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected gaps of type torch.bool and shape \[2, 3\], got"):
        NETWORK.evaluate_actions(**sequences(2, 3), gaps=gaps)


@several
@given(batch=st.integers(1, 4), shape=st.lists(st.integers(0, 17), max_size=4))
def test_hidden_states_of_another_shape(step: Any, batch: int, shape: list[int]) -> None:
    arguments = step(batch)
    if tuple(shape) == (1, batch, 16):
        return
    for hidden in ((torch.zeros(shape), arguments["hidden"][1]), (arguments["hidden"][0],), torch.zeros(2, *shape)):
        with pytest.raises(ValueError, match=r"expected hidden as a pair of torch.float32 .*start from initial_hidden"):
            NETWORK.get_action(**(arguments | {"hidden": hidden}))


def test_hidden_states_of_another_type_or_not_finite(step: Any) -> None:
    arguments = step(2)
    double = tuple(part.double() for part in arguments["hidden"])
    with pytest.raises(ValueError, match=r"expected hidden as a pair of torch.float32"):
        NETWORK.get_action(**(arguments | {"hidden": double}))
    broken = tuple(part + torch.nan for part in arguments["hidden"])
    for call in (NETWORK.get_action, NETWORK.state_value):
        with pytest.raises(ValueError, match="head 'op': the network's output for batch row 0 is not finite"):
            call(**(arguments | {"hidden": broken}))


def test_weights_that_have_diverged_are_named(step: Any) -> None:
    network = FactoredRecurrentActorCritic(hidden_dim=16, slot_dim=8, head_dim=8)
    with torch.no_grad():
        network.tree.output.bias[6:14].fill_(torch.nan)  # the slot head's
    arguments = step(2)
    arguments["masks"]["op"] = torch.tensor([[True] + 5 * [False], [False] * 5 + [True]])
    with pytest.raises(ValueError, match="head 'slot': the network's output for batch row"):
        network.get_action(**arguments)


def test_a_floor_too_high_for_the_number_of_slots(make_input: MakeInput) -> None:
    network = FactoredRecurrentActorCritic(probability_floor={"slot": 0.1})
    network.get_action(*make_input(2, slots=9)[:3])
    with pytest.raises(ValueError, match=r"head 'slot': a probability floor of 0.1 for each of 10 choices"):
        network.get_action(*make_input(2, slots=10)[:3])


def test_checks_of_values_can_be_turned_off(step: Any) -> None:
    network = FactoredRecurrentActorCritic(hidden_dim=16, slot_dim=8, head_dim=8, check_values=False)
    arguments = step(2)
    arguments["state"][0, 0] = torch.nan
    assert network.get_action(**arguments).value.isnan()[0]


def test_slots_are_looked_at_in_a_rollout_too(step: Callable[..., dict[str, Any]]) -> None:
    """Where nothing else is checked twice: a blueprint that is none would read another one's embedding."""
    given, hidden = step(2), NETWORK.initial_hidden(2)
    wrong = torch.tensor([[0, 1, -2], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"blueprint_indices must be from -1 \(empty slot\) to 12, got -2"):
        NETWORK.core(given["state"], wrong, hidden, {})
