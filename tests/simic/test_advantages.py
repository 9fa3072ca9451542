"""Advantages against a slow, obvious reference, with both kinds of ending and invalid rows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from esper.simic.advantages import compute_advantages, mean_of_others


def reference(rollout: dict[str, torch.Tensor], gamma: float, gae_lambda: float) -> list[list[tuple]]:
    """GAE written out as its definition: for each step, the discounted sum of the differences of its own episode.

    Where another policy acted, a later difference counts as far as the product of the ratios up to it says.
    """
    steps, envs = rollout["rewards"].shape
    number = {name: tensor.tolist() for name, tensor in rollout.items()}
    rows: list[list[tuple]] = [[(0.0, 0.0, 0.0)] * envs for _ in range(steps)]
    for k in range(envs):
        for start in range(steps):
            if not number["valid"][start][k]:
                continue
            advantage, weight = 0.0, 1.0
            for t in range(start, steps):
                if not number["valid"][t][k]:
                    break
                after = 0.0 if number["terminated"][t][k] else number["next_values"][t][k]
                difference = number["rewards"][t][k] + gamma * after - number["state_values"][t][k]
                if t > start and "likelihood_ratios" in number:
                    weight *= min(1.0, number["likelihood_ratios"][t][k])
                advantage += weight * difference
                if number["terminated"][t][k] or number["truncated"][t][k]:
                    break
                weight *= gamma * gae_lambda
            value, chosen = number["state_values"][start][k], number["chosen_values"][start][k]
            rows[start][k] = (advantage, advantage - (chosen - value), advantage + value)
    return rows


@st.composite
def rollouts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """A random rollout [T, K] whose invalid rows follow an ended episode, as next-step autoreset makes them."""
    steps, envs = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rollout = {
        name: torch.randn(steps, envs, generator=generator)
        for name in ("rewards", "state_values", "chosen_values", "next_values")
    }
    terminated = torch.rand(steps, envs, generator=generator) < 0.2
    truncated = torch.rand(steps, envs, generator=generator) < 0.2
    valid = torch.ones(steps, envs, dtype=torch.bool)
    if draw(st.booleans()):
        for t in range(1, steps):
            valid[t] = ~((terminated[t - 1] | truncated[t - 1]) & valid[t - 1])
        terminated &= valid
        truncated &= valid
    if draw(st.booleans()):
        rollout["likelihood_ratios"] = torch.randn(steps, envs, generator=generator).exp()
    return {**rollout, "terminated": terminated, "truncated": truncated, "valid": valid}


@settings(max_examples=200, deadline=None)
@given(rollouts(), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_equals_the_slow_reference(rollout: dict[str, torch.Tensor], gamma: float, gae_lambda: float) -> None:
    got = compute_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
    expected = torch.tensor(reference(rollout, gamma, gae_lambda))
    torch.testing.assert_close(torch.stack(got, dim=-1), expected, atol=1e-5, rtol=1e-5)


def single_step(**changes: float | bool) -> torch.Tensor:
    """The advantages (op, sub, target) of one step, with V = 2, Q = 3, next V = 10, reward 1, γ = 0.5."""
    numbers = {"rewards": 1.0, "state_values": 2.0, "chosen_values": 3.0, "next_values": 10.0}
    flags = {"terminated": False, "truncated": False, "valid": True}
    row = {name: torch.tensor([[value]]) for name, value in {**numbers, **flags, **changes}.items()}
    return torch.stack(compute_advantages(**row, gamma=0.5, gae_lambda=0.95)).flatten()


def test_only_termination_cuts_the_future_off() -> None:
    assert single_step(truncated=True).tolist() == [4.0, 3.0, 6.0]
    assert single_step(terminated=True).tolist() == [-1.0, -2.0, 1.0]


def test_a_terminal_step_never_reads_its_next_value() -> None:
    assert single_step(terminated=True, next_values=math.nan).tolist() == [-1.0, -2.0, 1.0]


def test_an_invalid_row_is_zero_whatever_it_holds() -> None:
    garbage = {"rewards": math.nan, "state_values": math.inf, "next_values": math.nan}
    assert single_step(valid=False, **garbage).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_no_chain_crosses_an_end(end: str) -> None:
    """A huge reward after the end changes nothing before it."""

    def advantages(later_reward: float) -> torch.Tensor:
        zeros, flags = torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.bool)
        ends = {"terminated": flags.clone(), "truncated": flags.clone()}
        ends[end][1] = True
        return compute_advantages(
            rewards=torch.tensor([[0.0], [1.0], [later_reward]]),
            state_values=zeros, chosen_values=zeros, next_values=zeros, valid=~flags, **ends, gamma=1.0, gae_lambda=1.0,
        ).op  # fmt: skip

    assert torch.equal(advantages(0.0)[:2], advantages(1e6)[:2])
    assert advantages(0.0)[:2].flatten().tolist() == [1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(rollouts())
def test_what_paired_environments_have_in_common_is_the_mean_of_the_others(rollout: dict[str, torch.Tensor]) -> None:
    advantages, valid = torch.where(rollout["valid"], rollout["rewards"], 0.0), rollout["valid"].tolist()
    steps, envs = advantages.shape
    found = mean_of_others(advantages, rollout["valid"])
    for t in range(steps):
        for k in range(envs):
            others = [float(advantages[t, j]) for j in range(envs) if j != k and valid[t][j]]
            assert float(found[t, k]) == pytest.approx(sum(others) / len(others) if others else 0.0, abs=1e-5)


@pytest.mark.parametrize("envs", [2, 3])
def test_over_the_mean_of_the_others_the_gradient_is_the_same_and_quieter(envs: int) -> None:
    """Every joint choice of K environments that share their luck, weighted with its probability."""
    logits = torch.tensor([0.3, -0.4, 0.1], requires_grad=True)
    paid, luck = torch.tensor([0.0, 1.0, 2.0]), (-5.0, 5.0)
    probabilities = logits.softmax(0).detach()
    scores = [torch.autograd.grad(logits.log_softmax(0)[choice], logits)[0] for choice in range(3)]
    everything = torch.ones(1, envs, dtype=torch.bool)
    weights, plain, paired = [], [], []
    for choices in itertools.product(range(3), repeat=envs):
        for common in luck:
            advantages = (paid[list(choices)] + common)[None]
            weights.append(float(probabilities[list(choices)].prod()) / len(luck))
            for gradients, used in ((plain, advantages), (paired, advantages - mean_of_others(advantages, everything))):
                gradients.append(sum(scores[c] * a for c, a in zip(choices, used[0], strict=True)))
    weight = torch.tensor(weights)[:, None]
    mean, mean_paired = ((torch.stack(gradients) * weight).sum(0) for gradients in (plain, paired))
    torch.testing.assert_close(mean_paired, mean, rtol=0, atol=1e-5)
    assert mean.abs().max() > 0.1
    noise, noise_paired = (
        float(((torch.stack(gradients) - mean).square() * weight).sum()) for gradients in (plain, paired)
    )
    assert noise_paired < 0.15 * noise


def test_shapes_in_signatures_are_checked_while_the_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="mean_of_others"):
        mean_of_others(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
