"""What the buffer stores, how it cuts sequences, and that the update sees exactly what the rollout did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.heads import Head, HeadTable
from esper.simic.rollout_buffer import RolloutBuffer, Transition, minibatches
from esper.tamiyo.networks.checks import Masks
from esper.tamiyo.networks.factored_lstm import Core, Judged
from esper.tamiyo.policy.lstm_bundle import PolicyInput
from kinds import KINDS

HEADS = HeadTable([Head("op", 2), Head("leaf", 3, parent="op")])


def transition(stamp: float, starts: torch.Tensor, valid: torch.Tensor, **changes: Any) -> Transition:
    """A step of K environments whose every number tells when and where it happened."""
    k = len(starts)
    where = stamp + torch.arange(k) / 100
    step = Transition(
        inputs=PolicyInput(where[:, None], None, {"op": None, "leaf": torch.tensor([False, True, True]).expand(k, 3)}),
        hidden=(where.view(1, k, 1), -where.view(1, k, 1)),
        actions={"op": torch.zeros(k, dtype=torch.int64), "leaf": torch.ones(k, dtype=torch.int64)},
        core=Core(where[:, None], None, None, None),
        rewards=where.numpy(),
        terminated=np.zeros(k, bool),
        truncated=np.zeros(k, bool),
        episode_starts=starts.numpy(),
        valid=valid.numpy(),
    )
    for name, value in changes.items():
        setattr(step, name, value)
    return step


def stamped(core: Core, actions: dict[str, torch.Tensor], masks: Masks) -> Judged:
    """Whatever was done, all that there is to say of it is when and where it was."""
    where = core.core[:, 0]
    return Judged(core.core.expand(-1, 2), core.core.expand(-1, 2), where, where)


def filled(starts: torch.Tensor, valid: torch.Tensor) -> RolloutBuffer:
    """A finished buffer with these episode starts and valid rows [T, K]."""
    buffer = RolloutBuffer(*starts.shape, HEADS)
    for t in range(len(starts)):
        buffer.add(transition(float(t), starts[t], valid[t]))
    buffer.close(stamped)
    buffer.finish(torch.zeros(starts.shape[1]), 0.9, 0.9)
    return buffer


@st.composite
def layouts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Episode starts and valid rows [T, K], with and without the reset rows of next-step autoreset."""
    steps, envs = draw(st.sampled_from([1, 2, 7, 15, 40])), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    ends = random.random((steps, envs)) < draw(st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]))
    starts, valid = np.zeros((steps, envs), bool), np.ones((steps, envs), bool)
    next_step = draw(st.booleans())
    for t in range(1, steps):
        if next_step:
            valid[t] = ~(ends[t - 1] & valid[t - 1])
            starts[t] = ~valid[t - 1]
        else:
            starts[t] = ends[t - 1]
    return torch.from_numpy(starts), torch.from_numpy(valid)


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Beginning and end of every run of True."""
    edges = [i for i in range(len(flags) + 1) if (i > 0 and flags[i - 1]) != (i < len(flags) and flags[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


@settings(max_examples=200, deadline=None)
@given(layouts(), st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 5), st.integers(0, 100))
def test_minibatches_hold_every_valid_row_once_in_order_and_within_its_episode(
    layout: tuple[torch.Tensor, torch.Tensor], max_length: int | None, count: int, seed: int
) -> None:
    starts, valid = layout
    buffer = filled(starts, valid)
    generator = torch.Generator().manual_seed(seed)
    seen = []
    batches = [batch for part in minibatches([buffer], count, max_length, generator) for batch in part.values()]
    assert len(batches) <= count
    for batch in batches:
        assert max_length is None or batch.gaps is not None or batch.valid.shape[1] <= max_length
        for line in range(len(batch.valid)):
            for first, last in runs(batch.valid[line].tolist()):
                stamps = batch.inputs.features[line, first:last, 0]
                times = stamps.floor().long().tolist()
                k = round((stamps[0].item() - times[0]) * 100)
                assert times == list(range(times[0], times[0] + last - first)), "one environment, step by step"
                assert max_length is None or len(times) <= max_length
                assert not starts[times[1:], k].any(), "an episode starts only where a sequence does"
                assert valid[times, k].all()
                assert torch.equal(batch.log_probs[line, first:last, 0], stamps)
                if first == 0:
                    assert batch.hidden[0][0, line, 0] == stamps[0], "the hidden state it had in the rollout"
                    assert batch.hidden[1][0, line, 0] == -stamps[0]
                else:
                    assert starts[times[0], k], "only what begins with an empty memory follows another"
                    assert batch.gaps is not None
                    assert batch.gaps[line, first - 1], "after a gap that empties it"
                seen += [(t, k) for t in times]
    assert sorted(seen) == [tuple(place) for place in valid.nonzero().tolist()]


@given(layouts())
@settings(max_examples=50, deadline=None)
def test_padding_allows_everything_and_matters_nowhere(layout: tuple[torch.Tensor, torch.Tensor]) -> None:
    for batch in next(iter(minibatches([filled(*layout)], 1))).values():
        padding = ~batch.valid
        mask = batch.inputs.masks["leaf"]
        assert mask is not None
        assert mask[padding].all()
        assert not mask[batch.valid][:, 0].any()
        assert not batch.could_matter[padding].any()
        assert not batch.inputs.features[padding].any()


def test_minibatches_have_about_equal_sizes() -> None:
    starts = torch.zeros(8, 64, dtype=torch.bool)
    buffer = filled(starts, ~starts)
    rows = [sum(int(batch.valid.sum()) for batch in part.values()) for part in minibatches([buffer], 4)]
    assert rows == [128] * 4


def test_keeps_copies_and_neither_graphs_nor_inference_tensors() -> None:
    flag = torch.tensor([False])
    weight = torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        frozen = torch.full((1, 1, 1), 7.0)
    hidden = (frozen, (weight * 3).view(1, 1, 1))
    buffer = RolloutBuffer(1, 1, HEADS)
    features = torch.ones(1, 1)
    step = transition(0.0, flag, ~flag, hidden=hidden)
    step.inputs = step.inputs._replace(features=features)
    with torch.inference_mode():
        buffer.add(step)
        buffer.close(stamped)
        buffer.finish(torch.zeros(1), 0.9, 0.9)
    features.fill_(99.0)
    stored = [buffer[name] for name in ("features", "hidden_0", "hidden_1", "log_probs", "rewards")]
    assert [float(x) for x in stored[:3]] == [1.0, 7.0, 3.0]
    assert not any(x.requires_grad or x.is_inference() for x in [*stored, *buffer.advantages])


def test_paired_environments_learn_by_what_the_others_did_worse() -> None:
    """Both heads' advantages are taken over the others'; what the critic learns stays; a gap stays out of it."""
    valid = torch.tensor([[True, True, True], [True, False, True]])
    starts = torch.tensor([[True, True, True], [False, False, False]])
    alone, together = filled(starts, valid), filled(starts, valid)
    last = torch.tensor([1.0, 2.0, 4.0])
    alone.finish(last, 0.9, 0.9)
    together.finish(last, 0.9, 0.9, paired=True)
    op = alone.advantages.op
    assert torch.equal(together.advantages.targets, alone.advantages.targets)
    others = torch.stack([op[:, [1, 2]].sum(1), op[:, [0, 2]].sum(1), op[:, [0, 1]].sum(1)], dim=1)
    others /= torch.tensor([[2.0, 2.0, 2.0], [1.0, 2.0, 1.0]])
    torch.testing.assert_close(together.head_advantages(), alone.head_advantages() - others[..., None])
    assert others.abs().min() > 0
    together.finish(last, 0.9, 0.9)
    assert torch.equal(together.head_advantages(), alone.head_advantages())


def test_refuses_what_does_not_fit() -> None:
    flags = torch.tensor([False, False])
    buffer = RolloutBuffer(2, 2, HEADS)
    buffer.add(transition(0.0, flags, ~flags))
    with pytest.raises(ValueError, match=r"expected 2 steps before close\(\), got 1"):
        buffer.close(stamped)
    with pytest.raises(ValueError, match=r"expected close\(\) before finish\(\)"):
        buffer.finish(torch.zeros(2), 0.9, 0.9)
    buffer.add(transition(1.0, flags, ~flags))
    with pytest.raises(ValueError, match="already holds its 2 steps"):
        buffer.add(transition(2.0, flags, ~flags))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["rewards", "terminated", "truncated", "episode_starts", "valid"]),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([np.float32, np.float64, np.int64, np.bool_]),
)
def test_numbers_of_a_step_have_one_shape_and_type(name: str, shape: list[int], dtype: type) -> None:
    flags = torch.tensor([False, False])
    step = transition(0.0, flags, ~flags)
    setattr(step, name, np.zeros(shape, dtype=dtype))
    buffer = RolloutBuffer(2, 2, HEADS)
    if shape == [2] and (issubclass(dtype, np.floating) if name == "rewards" else dtype == np.bool_):
        buffer.add(step)
    else:
        with pytest.raises(ValueError, match=rf"'{name}': expected .* of shape \(2,\), one per environment, got "):
            buffer.add(step)


def test_every_step_is_like_the_first() -> None:
    flags = torch.tensor([False, False])
    for wrong in (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 3)):
        buffer = RolloutBuffer(2, 2, HEADS)
        buffer.add(transition(0.0, flags, ~flags))
        step = transition(1.0, flags, ~flags)
        step.inputs = step.inputs._replace(features=wrong)
        buffer.add(step)
        with pytest.raises(ValueError, match=r"'features': expected torch.float32 of shape \(2, 1\) as before, got"):
            buffer.close(stamped)


def test_a_mask_that_is_not_given_allows_everything() -> None:
    flag = torch.tensor([False])
    buffer = RolloutBuffer(2, 1, HEADS)
    for given_mask in (torch.tensor([[True, False]]), None):
        step = transition(0.0, flag, ~flag)
        step.inputs = step.inputs._replace(masks={"op": given_mask, "leaf": None})
        buffer.add(step)
    buffer.close(stamped)
    assert buffer.num_allowed()[:, 0].tolist() == [[1, 3], [2, 3]]


# ---------------------------------------------------------------------- with a real policy


@pytest.mark.parametrize("options", [*KINDS.values(), {"probability_floor": 0.05}], ids=[*KINDS, "floor"])
@pytest.mark.parametrize("max_length", [None, 3])
def test_the_first_ratio_is_one_for_every_head(mode, tree_world, collected, options, max_length) -> None:
    """With masks (one conditional), resets inside the rollout, padding, a floor and a normaliser."""
    policy, rollout, _ = collected(tree_world(6, mode), 24, **options)
    assert rollout["episode_starts"][1:].any()
    assert rollout.could_matter.any(0).any(0).all()
    for part in minibatches([rollout], 3, max_length):
        for batch in part.values():
            evaluation = policy.evaluate_actions(batch.inputs, batch.actions, batch.hidden, batch.gaps)
            for i, head in enumerate(policy.heads.names):
                matters = batch.could_matter[..., i]
                ratio = (evaluation.log_probs[head] - batch.log_probs[..., i])[matters].exp()
                torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-5, rtol=0)
                used = evaluation.could_matter[head] & batch.valid
                assert torch.equal(matters, used), "the buffer knows by itself which heads matter"
            rolled = batch.targets - batch.advantages[..., 0]
            torch.testing.assert_close(evaluation.state_values[batch.valid], rolled[batch.valid], atol=1e-4, rtol=1e-4)


def test_the_stored_value_is_the_one_of_the_stored_op(mode, tree_world, collected) -> None:
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    (batch,) = next(iter(minibatches([rollout], 1))).values()
    evaluation = policy.evaluate_actions(batch.inputs, batch.actions, batch.hidden, batch.gaps)
    stored = rollout.advantages.targets - rollout.advantages.op  # V(s), put together again by the sequences
    state_values = batch.targets - batch.advantages[..., 0]
    assert torch.isin(state_values[batch.valid].round(decimals=4), stored.round(decimals=4)).all()
    torch.testing.assert_close(evaluation.state_values[batch.valid], state_values[batch.valid], atol=1e-5, rtol=1e-5)
    chosen = batch.advantages[..., 0] - batch.advantages[..., 1] + state_values
    torch.testing.assert_close(evaluation.values[batch.valid], chosen[batch.valid], atol=1e-5, rtol=1e-5)
