"""States on one scale: against a slow reference, with unknown numbers, and what the network makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.actions import HEADS
from esper.observation import RUN_SIZE, SLOT_SIZE, UNKNOWN
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.networks.standardizer import StateStandardizer

R, F = 3, 4


def batches(seed: int, count: int) -> list[np.ndarray]:
    """States of runs with different numbers of slots, many numbers unknown, one always and one never varying."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows, slots = rng.integers(1, 9), rng.integers(1, 4)
        x = rng.normal(5.0, 3.0, (rows, R + F * slots)).round(3)
        x[rng.random(x.shape) < 0.4] = UNKNOWN
        x[:, 1], x[:, R::F] = UNKNOWN, 7.0
        found.append(x.astype(np.float32))
    return found


def by_field(states: list[np.ndarray]) -> list[np.ndarray]:
    """All known numbers of each field."""
    fields: list[list[float]] = [[] for _ in range(R + F)]
    for x in states:
        for i, column in enumerate(x.T):
            fields[i if i < R else R + (i - R) % F].extend(column[column != UNKNOWN].tolist())
    return [np.array(f) for f in fields]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_statistics_are_those_of_all_known_numbers(seed: int, count: int) -> None:
    standardizer, states = StateStandardizer(R, F, UNKNOWN), batches(seed, count)
    for x in states:
        standardizer.update(torch.from_numpy(x))
    for i, known in enumerate(by_field(states)):
        assert standardizer.count[i] == len(known)
        assert float(standardizer.mean[i]) == pytest.approx(known.mean() if len(known) else 0.0, abs=1e-5)
        assert float(standardizer.var[i]) == pytest.approx(known.var() if len(known) else 1.0, abs=1e-4)


def test_known_numbers_get_one_scale_and_unknown_ones_become_zero() -> None:
    standardizer, states = StateStandardizer(R, F, UNKNOWN), batches(0, 60)
    for x in states:
        standardizer.update(torch.from_numpy(x))
    seen = {False: [], True: []}
    for x in states:
        state = torch.from_numpy(x)
        run, slots = standardizer(state[:, :R], state[:, R:].reshape(len(x), -1, F))
        varying = torch.cat([run[:, [0, 2]].flatten(), slots[..., 1:].flatten()])
        unknown = torch.cat([state[:, [0, 2]].flatten(), state[:, R:].reshape(len(x), -1, F)[..., 1:].flatten()])
        for is_unknown in (False, True):
            seen[is_unknown].append(varying[(unknown == UNKNOWN) == is_unknown])
        assert not run[:, 1].any(), "always unknown"
        assert slots[..., 0].abs().max() < 1e-4, "always the same"
    known = torch.cat(seen[False])
    assert abs(known.mean()) < 0.05
    assert abs(known.std() - 1) < 0.05
    assert not torch.cat(seen[True]).any()


def test_an_extreme_number_is_clipped() -> None:
    standardizer = StateStandardizer(1, 1)
    standardizer.update(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
    run, slots = standardizer(torch.tensor([[1e6]]), torch.tensor([[[-1e6]]]))
    assert (run.item(), slots.item()) == (5.0, -5.0)


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        StateStandardizer(1, 1).update(torch.tensor([[0.0, torch.nan]]))


def inputs(rows: int, slots: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.rand(rows, RUN_SIZE + slots * SLOT_SIZE, generator=generator)
    return states, torch.randint(-1, 13, (rows, slots), generator=generator)


def test_the_network_does_not_care_in_which_units_a_number_comes() -> None:
    """Every field in other units, a thousandth of the range and far from 0: the same answer, once it has seen them."""
    torch.manual_seed(0)
    network = FactoredRecurrentActorCritic(standardize=True)
    states, blueprints = inputs(200)
    factor = torch.rand(RUN_SIZE + SLOT_SIZE) + 0.5
    offset = torch.randn(RUN_SIZE + SLOT_SIZE)
    spread = lambda x: torch.cat([x[:RUN_SIZE], x[RUN_SIZE:].repeat(3)])  # noqa: E731
    masks = dict.fromkeys(HEADS.names)
    values = []
    for shown in (states, states * spread(factor) + spread(offset)):
        network.standardizer = StateStandardizer(RUN_SIZE, SLOT_SIZE, UNKNOWN)
        network.standardizer.update(shown)
        values.append(network.state_value(shown, blueprints, masks))
    torch.testing.assert_close(values[0], values[1], atol=2e-3, rtol=2e-3)
    assert values[0].std() > 1e-3


def test_training_goes_on_after_statistics_were_gathered_in_inference_mode() -> None:
    network = FactoredRecurrentActorCritic(standardize=True)
    states, blueprints = inputs(20)
    network.standardizer.update(states)
    states.requires_grad_()
    network.state_value(states, blueprints, dict.fromkeys(HEADS.names)).sum().backward()
    assert states.grad.abs().sum() > 0
    assert all(not buffer.is_inference() for buffer in network.buffers())


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_permuting_the_slots_permutes_the_answer_whatever_their_number(slots: int) -> None:
    torch.manual_seed(0)
    network = FactoredRecurrentActorCritic(standardize=True)
    network.standardizer.update(inputs(50)[0])
    states, blueprints = inputs(6, slots)
    states[:, ::5] = UNKNOWN
    order = torch.randperm(slots)
    numbers = states[:, RUN_SIZE:].reshape(6, slots, SLOT_SIZE)[:, order].flatten(1)
    permuted = torch.cat([states[:, :RUN_SIZE], numbers], dim=1)
    masks = dict.fromkeys(HEADS.names)
    first = network.get_action(states, blueprints, masks, deterministic=True)
    second = network.get_action(permuted, blueprints[:, order], masks, deterministic=True)
    torch.testing.assert_close(first.op_values, second.op_values, atol=1e-5, rtol=1e-5)
    uses_slot = first.actions["op"] != 0
    assert torch.equal(first.actions["slot"][uses_slot], order[second.actions["slot"]][uses_slot])
