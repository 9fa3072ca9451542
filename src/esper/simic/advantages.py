r"""Advantages for a policy that draws its action as a small tree, with a critic Q(s, op).

Legend: T steps, K environments. The op ``o`` is drawn first, the other heads after it.

A critic Q(s, o) is the wrong baseline for the op head itself: the better it gets, the closer

.. math:: \sum_o \nabla\pi(o|s)\,\bigl(Q^\pi(s,o) - Q(s,o)\bigr) \to 0,

so the op head stops learning. It is the right baseline for whatever is drawn *after* the op. Hence the op head gets the
advantage over V(s), the others the advantage over Q(s, o)::

    V(s)  = sum over the allowed o of pi(o|s) Q(s,o)     at rollout time
    d_t   = r_t + gamma V(s_t+1) - V(s_t)
    A_op  = GAE(d)
    A_sub = A_op - [Q(s_t, o_t) - V(s_t)]
    target of Q(s_t, o_t) = A_op + V(s_t)

GAE is Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16.

Where the stored choices were drawn by another policy mu than the stored pi (an episode judged once more under another
objective), later differences count as far as pi would have gone there too (Retrace, Munos et al. 2016,
https://arxiv.org/abs/1606.02647)::

    A_op_t = d_t + gamma lambda min(1, pi/mu)_t+1 A_op_t+1
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Advantages(NamedTuple):
    """Advantages and value targets of one rollout, each [T, K]; 0 at rows that are not valid."""

    op: Float[Tensor, "T K"]
    """A_op, for the op head: over V(s)."""
    sub: Float[Tensor, "T K"]
    """A_sub, for every head drawn after the op: over Q(s, op)."""
    targets: Float[Tensor, "T K"]
    """What Q(s, stored op) learns; also the λ-return estimate of V(s)."""


def compute_advantages(
    *,
    rewards: Float[Tensor, "T K"],
    state_values: Float[Tensor, "T K"],
    chosen_values: Float[Tensor, "T K"],
    next_values: Float[Tensor, "T K"],
    terminated: Bool[Tensor, "T K"],
    truncated: Bool[Tensor, "T K"],
    valid: Bool[Tensor, "T K"],
    gamma: float,
    gae_lambda: float,
    likelihood_ratios: Float[Tensor, "T K"] | None = None,
) -> Advantages:
    """Advantages of all environments at once; see the module for the equations.

    An episode that *terminated* has no future, so nothing is bootstrapped. One that was *truncated* would have gone on,
    so the value of its final observation stands in for the rest. No chain of differences crosses either.

    Args:
        rewards: r_t, [T, K].
        state_values: V(s_t), [T, K].
        chosen_values: Q(s_t, op taken), [T, K].
        next_values: V of the state that followed the step, [T, K]: of the *final* observation where the episode was
            truncated, never of the first observation of the next episode. Ignored where it terminated.
        terminated: Whether the step ended its episode for good, [T, K] bool.
        truncated: Whether the step was the last before a time limit, [T, K] bool.
        valid: False for rows that belong to no episode (the reset row of next-step autoreset), [T, K] bool.
        gamma: Discount per step, in [0, 1].
        gae_lambda: 0 for one-step differences, 1 for Monte Carlo.
        likelihood_ratios: pi(a_t|s_t) / mu(a_t|s_t) of the actions taken, [T, K]; ``None``: they are all 1.
    """
    bootstrap = torch.where(terminated, 0.0, next_values)
    differences = torch.where(valid, rewards + gamma * bootstrap - state_values, 0.0)
    decay = gamma * gae_lambda * (~(terminated | truncated) & valid)
    if likelihood_ratios is not None:
        decay[:-1] *= likelihood_ratios[1:].clamp(max=1)

    op = torch.zeros_like(differences)
    following = torch.zeros_like(differences[0])
    for t in reversed(range(len(differences))):
        following = torch.addcmul(differences[t], decay[t], following, out=op[t])

    return Advantages(
        op=op,
        sub=torch.where(valid, op - (chosen_values - state_values), 0.0),
        targets=torch.where(valid, op + state_values, 0.0),
    )


def mean_of_others(advantages: Float[Tensor, "T K"], valid: Bool[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    """What environments that share their luck have in common: for each the mean of the others at the same step, [T, K].

    Where K environments play the same episode (common random numbers), much of an advantage is due to the episode, not
    to the action. The mean of the others does not depend on one's own action, so the policy gradient stays unbiased
    without it (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!").

    Args:
        advantages: [T, K], 0 at rows that are not valid.
        valid: [T, K] bool.

    Returns:
        [T, K]; 0 where no other environment has a valid row.
    """
    others = valid.sum(1, keepdim=True) - valid.to(advantages.dtype)
    return (advantages.sum(1, keepdim=True) - advantages) / others.clamp(min=1)
