"""The mean of several trained policies' weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


@torch.no_grad()
def average(policies: Sequence[LSTMPolicyBundle], *, op_share: float | None = None) -> LSTMPolicyBundle:
    """A policy whose weights and statistics are the means of those given, taken in float64.

    A policy that went on learning under other conditions does well there and has lost some of what it could before;
    half way between the two, weights can do both (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). That holds for
    policies of which one was trained on from the other, not for strangers, and is to be checked on episodes of both
    conditions.

    Args:
        policies: Two or more with networks of the same sizes and heads, without an observation normaliser.
        op_share: How the mean decides; ``None``: as the first.

    Raises:
        ValueError: For fewer than two, other sizes, an observation normaliser, or weights that are not finite.
    """
    if len(policies) < 2:
        raise ValueError(f"expected two or more policies to average, got {len(policies)}")
    if any(policy.observation_normalizer is not None for policy in policies):
        raise ValueError("policies with an observation normaliser cannot be averaged: train with standardised states")
    first = policies[0].network.config
    for number, policy in enumerate(policies[1:], start=2):
        if (config := policy.network.config) != first:
            different = sorted(f.name for f in fields(first) if getattr(first, f.name) != getattr(config, f.name))
            raise ValueError(
                f"expected policies of the same sizes; the first and number {number} differ in {', '.join(different)}"
            )
    result = LSTMPolicyBundle(
        FactoredRecurrentActorCritic(first),
        op_share=policies[0].op_share if op_share is None else op_share,
        auditions=policies[0].auditions,
    )
    states = [policy.network.state_dict() for policy in policies]
    for number, state in enumerate(states, start=1):
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise ValueError(f"expected finite weights, got NaN or infinity in '{name}' of policy number {number}")
    for name, tensor in result.network.state_dict().items():
        parts = [state[name] for state in states]
        tensor.copy_(torch.stack([part.double() for part in parts]).mean(0))
    return result
