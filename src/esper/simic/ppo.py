"""Proximal policy optimisation for policies that draw their action as a small tree of heads.

Legend: B sequences, L steps (padded), H heads.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with the surrogate clipped for each head by itself. The joint
log-probability of an action is the sum over its heads, so the policy gradient is the sum of the heads' own gradients:
the op's weighted with its advantage over V(s), the others' with theirs over Q(s, op), see
:mod:`esper.simic.advantages`. A head that the action did not use, or that had only one choice, adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from esper.heads import HeadTable
from esper.simic.rollout_buffer import RolloutBuffer, SequenceBatch, minibatches
from esper.simic.schedules import Schedule, check, rate
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


@dataclass(frozen=True)
class PPOConfig:
    """How the policy learns from a rollout."""

    learning_rate: Schedule = "linear:3e-4"
    """Step size of Adam: a number, "linear:START:END", "cosine:START:END" (without END: to zero), or "module:function"
    of what remains of the training."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation: 0 for one-step differences, 1 for Monte Carlo."""
    clip: Schedule = 0.2
    """How far a head's probability ratio may move from 1 before its gradient stops; a number or a schedule."""
    clip_range_vf: Schedule | None = None
    """How far a value may move from what it was at rollout time before its gradient stops, in units of the (normalised)
    return, see `squared_error`; a number or a schedule. `None`: however far."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Gradient steps per pass; sequences stay whole."""
    max_sequence_length: int | None = None
    """Steps through which gradients flow back; longer sequences are cut and begin with their stored hidden state.
    `None`: through the whole rollout, up to an episode's start."""
    entropy_coefficient: float = 0.01
    """Weight of each head's mean entropy (nats) over the rows in which the head could matter."""
    head_entropy_coefficients: Mapping[str, float] = field(default_factory=dict)
    """Weights for single heads, by name, in place of `entropy_coefficient`."""
    value_coefficient: float = 0.5
    """Weight of the critic's squared error."""
    max_grad_norm: float = 0.5
    """The gradient is scaled down to this norm."""
    target_kl: float | None = None
    """Stop the update when the joint policy has moved 1.5 times this far (nats per step); `None`: never."""
    normalize_advantages: bool = True
    """Give each head's advantages mean 0 and standard deviation 1 over the rows in which the head could matter, in each
    vector environment by itself: a task in which little is at stake counts as much as one in which much is."""

    def __post_init__(self) -> None:
        for name, low, high in (("gamma", 0, 1), ("gae_lambda", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected a number from {low} to {high}, got {getattr(self, name)}")
        for name in ("epochs", "minibatches", "max_sequence_length"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        check("learning_rate", self.learning_rate)
        check("clip", self.clip, most=1)
        if self.clip_range_vf is not None:
            check("clip_range_vf", self.clip_range_vf)
        for name in ("max_grad_norm", "target_kl"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")

    def entropy_coefficients(self, heads: HeadTable) -> list[float]:
        """The weight of each head's entropy, in the order of the table.

        Raises:
            ValueError: When ``head_entropy_coefficients`` names a head that is not in the table.
        """
        unknown = sorted(set(self.head_entropy_coefficients) - set(heads.names))
        if unknown:
            raise ValueError(f"head_entropy_coefficients names unknown heads {unknown}; the heads are {heads.names}")
        return [self.head_entropy_coefficients.get(h, self.entropy_coefficient) for h in heads.names]


def make_optimizer(policy: LSTMPolicyBundle, config: PPOConfig) -> torch.optim.Optimizer:
    """Adam over the policy's weights, with the ε of the PPO implementations that are compared with each other."""
    return torch.optim.Adam(policy.network.parameters(), eps=1e-5, fused=True)


def update(
    policy: LSTMPolicyBundle,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[RolloutBuffer],
    config: PPOConfig,
    generator: torch.Generator | None = None,
    remaining: float = 1.0,
) -> dict[str, float]:
    """Improve the policy on finished rollouts, with several passes over the same data.

    Args:
        policy: Learns in place.
        optimizer: Over the policy's weights.
        rollouts: One or more, :meth:`RolloutBuffer.finish` called; all are learned from together.
        config: The hyper-parameters.
        generator: Decides the minibatches.
        remaining: Of the training, from 1 to 0; it decides the rates that change over it.

    Returns:
        Metrics. ``/{head}`` means one number per head, over the rows in which that head could matter (NaN when there
        was none). From the gradient steps, averaged: ``policy_loss``, ``value_loss``, ``grad_norm``, ``kl`` (joint,
        nats per step), ``kl/{head}``, ``clip_fraction/{head}``, ``gradient_share/{head}`` (share of the policy
        gradient, taken at the log-probabilities), and ``gradient_steps``. From the first one:
        ``first_ratio_error/{head}``, the greatest ``|ratio − 1|``, which is rounding error unless rollout and update
        disagree, or the policy that acted was an older one (``TrainConfig.overlap``). And ``learning_rate``, ``clip``,
        and those of :func:`rollout_metrics`.

    Raises:
        ValueError: When a schedule gives no number that makes sense.
        RuntimeError: When the gradient is not finite; the weights are as before that step.
    """
    learning_rate = rate("learning_rate", config.learning_rate, remaining)
    clip = rate("clip", config.clip, remaining, most=1)
    value_clip = None if config.clip_range_vf is None else rate("clip_range_vf", config.clip_range_vf, remaining)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    scales = [AdvantageScale.of([r]) if config.normalize_advantages else AdvantageScale.none() for r in rollouts]
    tally = _Tally(policy.heads)
    batches = minibatches(rollouts, config.minibatches, config.max_sequence_length, generator, passes=config.epochs)
    for minibatch in batches:
        terms = _combine([_terms(policy, batch, scales[r], clip, value_clip) for r, batch in minibatch.items()])
        tally.terms.append(terms.detached())
        if config.target_kl is not None and _joint_kl(terms.log_ratio) / terms.rows > 1.5 * config.target_kl:
            break
        optimizer.zero_grad(set_to_none=True)
        _loss(terms, config, policy.heads).backward()
        tally.grad_norms.append(_clip_gradient(policy, config.max_grad_norm))
        optimizer.step()
    return {"learning_rate": learning_rate, "clip": clip, **tally.metrics(clip), **rollout_metrics(rollouts)}


# ---------------------------------------------------------------------- the loss


class AdvantageScale(NamedTuple):
    """What is taken from, and what divides, each head's advantages, [H] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, rollouts: Sequence[RolloutBuffer]) -> AdvantageScale:
        """Mean and deviation over the rows in which each head could matter; 0 and 1 for a head with fewer than two."""
        matters = torch.cat([r.could_matter.flatten(0, 1) for r in rollouts])
        advantages = torch.cat([r.head_advantages().flatten(0, 1) for r in rollouts]) * matters
        count = matters.sum(0)
        enough = count > 1
        mean = advantages.sum(0) / count.clamp(min=1)
        variance = ((advantages - mean).square() * matters).sum(0) / (count - 1).clamp(min=1)
        return cls(torch.where(enough, mean, 0.0), torch.where(enough, variance.sqrt() + 1e-8, 1.0))

    @classmethod
    def none(cls) -> AdvantageScale:
        """Leaves advantages as they are."""
        return cls(torch.tensor(0.0), torch.tensor(1.0))


class _Terms(NamedTuple):
    """Of a minibatch of N rows: sums over them, [H] where not said otherwise, and what statistics are made of."""

    rows: Tensor
    """Number of valid rows, scalar."""
    head_rows: Tensor
    """Number of rows in which each head could matter."""
    surrogate: Tensor
    """Clipped surrogate objective, with gradient."""
    squared_error: Tensor
    """Of the critic, scalar, with gradient."""
    entropy: Tensor
    """With gradient."""
    log_ratio: Tensor
    """[N, H], without gradient; 0 where a head could not matter."""
    advantages: Tensor
    """[N, H], as they were learned from; 0 where a head could not matter."""

    def detached(self) -> _Terms:
        """The same without gradients."""
        return _Terms(*[part.detach() for part in self])


def squared_error(values: Tensor, targets: Tensor, before: Tensor, clip: float | None) -> Tensor:
    """The critic's squared error, of any shape, row by row.

    With ``clip`` c it is the greater of the errors of V and of V_old + clamp(V − V_old, −c, c), so that a value gets no
    gradient beyond c from where it was, unless it went away from its target (Dhariwal et al. 2017, OpenAI Baselines'
    PPO2; Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, equation 3).

    Args:
        values: V.
        targets: What V learns.
        before: V_old, at rollout time.
        clip: c; ``None`` for the plain error.
    """
    error = (values - targets).square()
    if clip is None:
        return error
    return torch.maximum(error, (before + (values - before).clamp(-clip, clip) - targets).square())


def _terms(
    policy: LSTMPolicyBundle,
    batch: SequenceBatch,
    scale: AdvantageScale,
    clip: float,
    value_clip: float | None = None,
) -> _Terms:
    judged = policy.judge_sequences(batch.inputs, batch.actions, batch.hidden, batch.gaps, batch.valid)

    # Where a head could not matter its ratio is 1 and its advantage 0, so that it adds exactly nothing.
    could_matter_NH = batch.could_matter.flatten(0, 1)
    idle_NH = ~could_matter_NH
    log_ratio_NH = (judged.log_probs - batch.log_probs.flatten(0, 1)).masked_fill(idle_NH, 0.0)
    ratio_NH = log_ratio_NH.exp()
    advantages_NH = ((batch.advantages.flatten(0, 1) - scale.mean) / scale.std).masked_fill(idle_NH, 0.0)
    surrogate_NH = torch.minimum(ratio_NH * advantages_NH, ratio_NH.clamp(1 - clip, 1 + clip) * advantages_NH)
    error_N = squared_error(judged.value, batch.targets.flatten(), batch.chosen_values.flatten(), value_clip)
    return _Terms(
        rows=batch.valid.sum(),
        head_rows=could_matter_NH.sum(0),
        surrogate=surrogate_NH.sum(0),
        squared_error=error_N.masked_fill(~batch.valid.flatten(), 0.0).sum(),
        entropy=judged.entropies.masked_fill(idle_NH, 0.0).sum(0),
        log_ratio=log_ratio_NH.detach(),
        advantages=advantages_NH,
    )


def _combine(parts: Sequence[_Terms]) -> _Terms:
    """All rows as those of one minibatch."""
    if len(parts) == 1:
        return parts[0]
    *sums, log_ratios, advantages = zip(*parts, strict=True)
    return _Terms(*[torch.stack(column).sum(0) for column in sums], *map(torch.cat, (log_ratios, advantages)))


def _loss(terms: _Terms, config: PPOConfig, heads: HeadTable) -> Tensor:
    policy_loss = -terms.surrogate.sum() / terms.rows
    value_loss = 0.5 * terms.squared_error / terms.rows
    entropy = terms.entropy / terms.head_rows.clamp(min=1)
    return (
        policy_loss
        + config.value_coefficient * value_loss
        - (entropy * entropy.new_tensor(config.entropy_coefficients(heads))).sum()
    )


def _clip_gradient(policy: LSTMPolicyBundle, max_norm: float) -> float:
    """Scale the gradient down to ``max_norm``; its norm before."""
    norm = torch.nn.utils.clip_grad_norm_(policy.network.parameters(), max_norm, foreach=True).item()
    if not math.isfinite(norm):
        raise RuntimeError(
            f"the gradient is not finite (norm {norm}); the weights were left as they were. Look at the rewards "
            "(normalize_rewards keeps returns small) or lower learning_rate"
        )
    return norm


# ---------------------------------------------------------------------- metrics


def _joint_kl(log_ratio_NH: Tensor) -> Tensor:
    """Divergence of the joint policy, summed over rows."""
    joint_N = log_ratio_NH.sum(-1)
    # Schulman's estimator (ratio − 1) − log ratio: unbiased, never negative, of low variance.
    return (joint_N.exp() - 1 - joint_N).sum()


@dataclass
class _Tally:
    """Keeps what the gradient steps of one update did, to tell of it all at once."""

    heads: HeadTable
    terms: list[_Terms] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def metrics(self, clip: float) -> dict[str, float]:
        total = _combine(self.terms)
        ratio = total.log_ratio.exp()
        stopped = (ratio - 1) * total.advantages.sign() > clip
        gradient = (ratio * total.advantages).abs().masked_fill(stopped, 0.0).sum(0)
        clipped = ((ratio - 1).abs() > clip).sum(0)
        metrics: dict[str, Tensor | float] = {
            "policy_loss": -total.surrogate.sum() / total.rows,
            "value_loss": 0.5 * total.squared_error / total.rows,
            "kl": _joint_kl(total.log_ratio) / total.rows,
            "gradient_steps": len(self.grad_norms),
            "grad_norm": sum(self.grad_norms) / max(len(self.grad_norms), 1),
            **_by_head("kl", self.heads, (ratio - 1 - total.log_ratio).sum(0) / total.head_rows),
            **_by_head("clip_fraction", self.heads, clipped / total.head_rows),
            **_by_head("gradient_share", self.heads, gradient / gradient.sum()),
            **_by_head("first_ratio_error", self.heads, (self.terms[0].log_ratio.exp() - 1).abs().amax(0)),
        }
        return {name: float(value) for name, value in metrics.items()}


def rollout_metrics(rollouts: Sequence[RolloutBuffer]) -> dict[str, float]:
    """What the rollouts say about the policy and the critic that made them.

    Returns:
        ``explained_variance`` (share of the variance of the λ-returns that V(s) explains; 1 is perfect, 0 no better
        than a constant), ``advantage_mean/{head}`` and ``advantage_std/{head}`` before normalisation,
        ``entropy/{head}`` (conditional, nats), ``normalized_entropy/{head}`` (in units of the logarithm of the number
        of allowed choices: 1 is uniform, 0 is certain; of numbers, the share of their bounds that a uniform draw of the
        same entropy would fill), ``head_share/{head}`` (share of the steps in which the head
        could matter), and ``choice_share/{choice}`` of a categorical op.
    """
    heads = rollouts[0].heads
    valid = torch.cat([r["valid"].flatten() for r in rollouts])
    matters = torch.cat([r.could_matter.flatten(0, 1) for r in rollouts])
    entropies = torch.cat([r["entropies"].flatten(0, 1) for r in rollouts])
    allowed = torch.cat([r.num_allowed().flatten(0, 1) for r in rollouts])
    advantages = torch.cat([r.advantages.op.flatten() for r in rollouts if r.advantages is not None])[valid]
    returns = torch.cat([r.advantages.targets.flatten() for r in rollouts if r.advantages is not None])[valid]
    scale = AdvantageScale.of(rollouts)
    count = matters.sum(0)
    normalized = torch.stack(
        [
            (h.exp() / n).pow(1 / head.num_choices) if head.kind == "gaussian" else h / n.clamp(min=2).log()
            for head, h, n in zip(heads, entropies.unbind(-1), allowed.unbind(-1), strict=True)
        ],
        dim=-1,
    )
    metrics = {
        "explained_variance": 1 - advantages.var(correction=0) / returns.var(correction=0),
        **_by_head("advantage_mean", heads, torch.where(count > 1, scale.mean, math.nan)),
        **_by_head("advantage_std", heads, torch.where(count > 1, scale.std, math.nan)),
        **_by_head("entropy", heads, (entropies * matters).sum(0) / count),
        **_by_head("normalized_entropy", heads, (normalized * matters).sum(0) / count),
        **_by_head("head_share", heads, count / valid.sum()),
    }
    if heads.num_ops:
        ops = torch.cat([r["actions"][..., 0].flatten() for r in rollouts])[valid].long()
        shares = torch.bincount(ops, minlength=heads.num_ops) / len(ops)
        metrics |= {f"choice_share/{name}": share for name, share in zip(op_choices(heads), shares, strict=True)}
    return {name: float(value) for name, value in metrics.items()}


def op_choices(heads: HeadTable) -> tuple[str, ...]:
    """Names of the ops, or their numbers where they have none; empty where the first head is not categorical."""
    return heads.op.choices if heads.num_ops and heads.op.choices else tuple(str(i) for i in range(heads.num_ops))


def _by_head(name: str, heads: HeadTable, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}/{head}": value for head, value in zip(heads.names, values, strict=True)}
