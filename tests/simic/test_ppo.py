"""The loss, against enumeration and against a slow reference."""

from __future__ import annotations

import math
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from esper.heads import Head, HeadTable
from esper.simic import ppo
from esper.simic.ppo import AdvantageScale, PPOConfig
from esper.simic.rollout_buffer import RolloutBuffer, minibatches
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.collector import Collector
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

REWARDS = torch.tensor([[0.0, 1.0], [2.0, 6.0], [-1.0, 3.0]])
"""Reward of (op, leaf choice)."""
BANDIT = HeadTable([Head("op", 3), Head("leaf", 2, parent="op")])


class Bandit(VectorEnv):
    """One state, one step: everything about it can be enumerated."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "heads": BANDIT.to_json()}
        self.single_observation_space = gym.spaces.Box(0, 1, (1,), dtype=np.float32)
        self.single_action_space = gym.spaces.Dict({"op": gym.spaces.Discrete(3), "leaf": gym.spaces.Discrete(2)})
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.ones((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        rewards = REWARDS.numpy()[actions["op"], actions["leaf"]]
        ended = np.ones(self.num_envs, bool)
        return np.ones((self.num_envs, 1), np.float32), rewards, ended, ~ended, {}


def bandit_policy() -> tuple[LSTMPolicyBundle, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A policy with a perfect critic, and its π(op) [3], π(leaf | op) [3, 2] and Q(op) [3]."""
    network = FactoredRecurrentActorCritic(
        state_dim=1, num_slots=0, heads=BANDIT, hidden_dim=8, head_dim=8, memory="none"
    )
    with torch.no_grad():
        network.tree.output.bias.copy_(torch.tensor([0.5, 0.0, -0.5, 0.0, 2.0]))
        ops, leaves = torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij")
        pairs = {"op": ops.reshape(6, 1), "leaf": leaves.reshape(6, 1)}
        log_probs, *_ = network.evaluate_actions(torch.ones(6, 1, 1), None, pairs, dict.fromkeys(BANDIT.names))
        op_probs = log_probs["op"].exp().view(3, 2)[:, 0]
        leaf_probs = log_probs["leaf"].exp().view(3, 2)
        values = (leaf_probs * REWARDS).sum(-1)
        network.critic.weight.zero_()
        network.critic.bias.copy_(torch.cat([torch.zeros(1), values]))
    return LSTMPolicyBundle(network), op_probs, leaf_probs, values


def bandit_rollout(policy: LSTMPolicyBundle) -> RolloutBuffer:
    envs = Bandit(2000)
    collector = Collector(envs, EnvironmentAdapter(envs), 20)
    collector.reset(policy, 0)
    return collector.collect(policy, torch.Generator().manual_seed(0), gamma=1.0, gae_lambda=1.0)


def logit_gradients(policy: LSTMPolicyBundle, rollout: RolloutBuffer) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the surrogate at the biases of the op's [3] and the leaf's [2] logits."""
    policy.network.zero_grad()
    (batch,) = next(iter(minibatches([rollout], 1))).values()
    terms = ppo._terms(policy, batch, AdvantageScale.none(), clip=0.2)
    (terms.surrogate.sum() / terms.rows).backward()
    gradient = policy.network.tree.output.bias.grad
    assert gradient is not None
    return gradient[:3], gradient[3:]


def test_the_op_gradient_is_the_enumerated_one_and_vanishes_with_q_as_its_baseline() -> None:
    """DESIGN: the better Q(s, op) predicts, the less it can teach the op; V(s) is the op's baseline."""
    policy, op_probs, _, values = bandit_policy()
    rollout = bandit_rollout(policy)
    gradient, _ = logit_gradients(policy, rollout)
    enumerated = op_probs * (values - (op_probs * values).sum())
    assert enumerated.abs().max() > 0.5
    torch.testing.assert_close(gradient, enumerated, atol=0.02, rtol=0)

    rollout.advantages = rollout.advantages._replace(op=rollout.advantages.sub)
    vanishing, _ = logit_gradients(policy, rollout)
    assert vanishing.abs().max() < 0.02


def test_the_leaf_gradient_is_the_enumerated_one_with_less_noise_than_over_v() -> None:
    policy, op_probs, leaf_probs, values = bandit_policy()
    rollout = bandit_rollout(policy)
    _, gradient = logit_gradients(policy, rollout)
    advantage = REWARDS - values[:, None]
    enumerated = (op_probs[:, None] * leaf_probs * advantage).sum(0)
    torch.testing.assert_close(gradient, enumerated, atol=0.02, rtol=0)
    assert rollout.advantages.sub.var() < 0.5 * rollout.advantages.op.var()


def test_the_critic_learns_q_of_the_op() -> None:
    """Its targets average to Q(op) for each op."""
    policy, _, _, values = bandit_policy()
    rollout = bandit_rollout(policy)
    ops = rollout["actions"][..., 0]
    for choice in range(3):
        assert rollout.advantages.targets[ops == choice].mean() == pytest.approx(values[choice].item(), abs=0.1)


# ---------------------------------------------------------------------- against a slow reference


def reference_loss(policy: LSTMPolicyBundle, rollout: RolloutBuffer, config: PPOConfig, old: torch.Tensor) -> float:
    """The loss, row by row and head by head, from one long evaluation of every environment step by step."""
    heads, network = policy.heads, policy.network
    advantages, matters = rollout.head_advantages(), rollout.could_matter
    scale = [(advantages[..., i][matters[..., i]].mean(), advantages[..., i][matters[..., i]].std()) for i in range(3)]
    surrogate, squared, rows = 0.0, 0.0, 0
    entropies: list[list[float]] = [[], [], []]
    for k in range(rollout.num_envs):
        for t in range(rollout.num_steps):
            if not rollout["valid"][t, k]:
                continue
            rows += 1
            if t == 0 or rollout["episode_starts"][t, k] or not rollout["valid"][t - 1, k]:
                hidden = (rollout["hidden_0"][t, :, k : k + 1], rollout["hidden_1"][t, :, k : k + 1])
            state = policy.observation_normalizer.normalize(rollout["features"][t, k])[None, None]
            masks = {h: rollout._masks[h][t, k][None, None] for h in heads.names}
            actions = {h: rollout["actions"][t, k, i].view(1, 1) for i, h in enumerate(heads.names)}
            evaluation = network.evaluate_actions(state, None, actions, masks, hidden)
            hidden = evaluation.hidden
            squared += (evaluation.values.item() - rollout.advantages.targets[t, k].item()) ** 2
            for i, head in enumerate(heads.names):
                if not evaluation.could_matter[head].item():
                    continue
                entropies[i].append(evaluation.entropy[head].item())
                ratio = math.exp(evaluation.log_probs[head].item() - old[t, k, i].item())
                a = ((advantages[t, k, i] - scale[i][0]) / scale[i][1]).item()
                surrogate += min(ratio * a, max(min(ratio, 1.2), 0.8) * a)
    weights = config.entropy_coefficients(heads)
    bonus = sum(w * sum(e) / len(e) for w, e in zip(weights, entropies, strict=True))
    return -surrogate / rows + config.value_coefficient * 0.5 * squared / rows - bonus


def test_the_loss_equals_the_slow_reference(mode, tree_world, collected) -> None:
    policy, rollout, _ = collected(tree_world(5, mode), 20)
    rollout["log_probs"].add_(torch.randn_like(rollout["log_probs"]) * 0.3)  # as if the policy had moved
    config = PPOConfig(head_entropy_coefficients={"item": 0.3})
    (batch,) = next(iter(minibatches([rollout], 1))).values()
    terms = ppo._terms(policy, batch, AdvantageScale.of([rollout]), 0.2)
    expected = reference_loss(policy, rollout, config, rollout["log_probs"])
    assert ppo._loss(terms, config, policy.heads).item() == pytest.approx(expected, rel=1e-4)


def test_the_gradient_does_not_depend_on_the_layout(tree_world, collected, mode) -> None:
    """All sequences in lines with gaps, or every sequence in a batch of its own."""
    policy, rollout, _ = collected(tree_world(5, mode), 40)
    config = PPOConfig()
    scale = AdvantageScale.of([rollout])
    sequences = rollout.sequences()
    everything = torch.arange(len(sequences.length))
    assert sequences.batch(everything).gaps is not None

    def gradient(parts: list[torch.Tensor]) -> torch.Tensor:
        policy.network.zero_grad()
        terms = ppo._combine([ppo._terms(policy, sequences.batch(part), scale, 0.2) for part in parts])
        ppo._loss(terms, config, policy.heads).backward()
        return torch.cat([p.grad.flatten() for p in policy.network.parameters()])

    torch.testing.assert_close(gradient([everything]), gradient(list(everything[:, None])), atol=1e-5, rtol=1e-4)


def test_an_update_says_which_rows_are_padding(tree_world, collected, mode, monkeypatch) -> None:
    """So that no encoder sees them."""
    policy, rollout, _ = collected(tree_world(5, mode), 40)
    (batch,) = next(iter(minibatches([rollout], 1))).values()
    judge, said = policy.judge_sequences, []
    monkeypatch.setattr(policy, "judge_sequences", lambda *given: said.append(given[-1]) or judge(*given))
    ppo._terms(policy, batch, AdvantageScale.none(), clip=0.2)
    assert not batch.valid.all()
    assert torch.equal(said[0], batch.valid)


def test_a_head_that_no_action_uses_gets_exactly_no_gradient(tree_world, collected, mode) -> None:
    policy, rollout, _ = collected(tree_world(5, mode), 20)
    rollout["actions"][..., 0].clamp_(max=1)  # nobody throws: "force" is unused
    for mask in rollout._masks.values():
        mask.fill_(True)
    (batch,) = next(iter(minibatches([rollout], 1))).values()
    terms = ppo._terms(policy, batch, AdvantageScale.of([rollout]), 0.2)
    ppo._loss(terms, PPOConfig(entropy_coefficient=0.1), policy.heads).backward()
    output, hidden = policy.network.tree.output, policy.network.tree.hidden
    verb, item, force = output.weight.grad.split((3, 4, 2))
    assert verb.any()
    assert item.any()
    assert not force.any()
    assert not hidden.weight.grad[-policy.network.config.head_dim :].any()


@pytest.mark.parametrize(
    ("value", "target", "before", "error", "gradient"),
    [
        (1.1, 2.0, 1.0, 0.81, -1.8),  # within 0.2 of where it was: the plain error
        (1.5, 2.0, 1.0, 0.64, 0.0),  # went further towards its target: as if it had stopped at 1.2
        (0.5, 2.0, 1.0, 2.25, -3.0),  # went away from its target: the plain error, to come back
        (3.5, 2.0, 1.0, 2.25, 3.0),  # went past it, and is further off than where it should have stopped
    ],
)
def test_a_clipped_value_learns_no_further_than_the_clip(value, target, before, error, gradient) -> None:
    values = torch.tensor(value, requires_grad=True)
    loss = ppo.squared_error(values, torch.tensor(target), torch.tensor(before), clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(error)
    assert values.grad == pytest.approx(gradient)
    plain = ppo.squared_error(values, torch.tensor(target), torch.tensor(before), clip=None)
    assert plain.item() == pytest.approx((value - target) ** 2)


def test_values_are_clipped_about_what_they_were_at_rollout_time(tree_world, collected, mode) -> None:
    """Nothing has moved yet, so any clip gives the plain loss; with other values at rollout time it does not."""
    policy, rollout, _ = collected(tree_world(5, mode), 20)

    def loss(clip: float | None) -> float:
        (batch,) = next(iter(minibatches([rollout], 1))).values()
        return ppo._terms(policy, batch, AdvantageScale.none(), 0.2, clip).squared_error.item()

    assert loss(0.1) == pytest.approx(loss(None), rel=1e-5)
    was = rollout["chosen_values"].clone()
    rollout["chosen_values"].add_(0.5)  # as if all values had fallen since
    valid = rollout["valid"]
    stopped = (was + 0.4 - rollout.advantages.targets).square()
    plain = (was - rollout.advantages.targets).square()
    assert loss(0.1) == pytest.approx(torch.maximum(stopped, plain)[valid].sum().item(), rel=1e-4)
    assert loss(0.1) > loss(None)


def test_an_update_clips_values_as_it_is_told(tree_world, collected) -> None:
    """At a clip of nearly nothing the critic stops as soon as it has moved."""

    def error(clip: float | str | None) -> float:
        torch.manual_seed(0)
        policy, rollout, _ = collected(tree_world(6, AutoresetMode.SAME_STEP), 24)
        config = PPOConfig(learning_rate=1e-2, clip_range_vf=clip, epochs=8, minibatches=1)
        ppo.update(policy, ppo.make_optimizer(policy, config), [rollout], config, torch.Generator())
        (batch,) = next(iter(minibatches([rollout], 1))).values()
        return ppo._terms(policy, batch, AdvantageScale.none(), 0.2).squared_error.item()

    assert error("linear:1e-6") > 1.05 * error(None)
    with pytest.raises(ValueError, match="clip_range_vf: expected a number above 0"):
        PPOConfig(clip_range_vf=-0.2)


# ---------------------------------------------------------------------- update


def test_update_reports_every_head(tree_world, collected, mode) -> None:
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    config = PPOConfig(epochs=2, minibatches=3)
    metrics = ppo.update(policy, ppo.make_optimizer(policy, config), [rollout], config, torch.Generator())
    assert metrics["gradient_steps"] == 6
    for head in policy.heads.names:
        assert metrics[f"first_ratio_error/{head}"] < 1e-5
        assert 0 < metrics[f"normalized_entropy/{head}"] <= 1
        assert 0 <= metrics[f"clip_fraction/{head}"] < 1
        assert metrics[f"kl/{head}"] > 0
        assert 0 < metrics[f"head_share/{head}"] <= 1
    assert sum(metrics[f"gradient_share/{h}"] for h in policy.heads.names) == pytest.approx(1)
    assert sum(metrics[f"choice_share/{c}"] for c in ("wait", "take", "throw")) == pytest.approx(1)
    assert metrics["advantage_std/verb"] > 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant() -> None:
    policy, *_ = bandit_policy()
    rollout = bandit_rollout(policy)
    assert ppo.rollout_metrics([rollout])["explained_variance"] == pytest.approx(0, abs=1e-5)
    rollout.advantages = rollout.advantages._replace(op=torch.zeros_like(rollout.advantages.op))
    assert ppo.rollout_metrics([rollout])["explained_variance"] == 1


def test_stops_when_the_policy_has_moved_far_enough(tree_world, collected, mode) -> None:
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    config = PPOConfig(learning_rate=0.05, epochs=50, minibatches=1, target_kl=0.05)
    metrics = ppo.update(policy, ppo.make_optimizer(policy, config), [rollout], config, torch.Generator())
    assert 1 <= metrics["gradient_steps"] < 50


@pytest.mark.parametrize("far", [0.99, 1.01])
def test_how_far_the_policy_has_moved_is_measured_per_row(tree_world, collected, mode, far: float) -> None:
    """Each head of each row 0.3 nats off its stored log-probability; the divergence is the mean over valid rows."""
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    rollout["log_probs"].sub_(0.3)
    moved = 0.3 * rollout.could_matter.sum(-1)[rollout["valid"]]
    kl = float((moved.exp() - 1 - moved).mean())
    config = PPOConfig(epochs=1, minibatches=1, target_kl=kl / 1.5 / far)
    metrics = ppo.update(policy, ppo.make_optimizer(policy, config), [rollout], config, torch.Generator())
    assert metrics["kl"] == pytest.approx(kl, rel=1e-3)
    assert metrics["gradient_steps"] == (0 if far > 1 else 1)


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_no_step_is_longer_than_the_norm_that_the_gradient_is_scaled_down_to(
    tree_world, collected, mode, max_norm: float
) -> None:
    """Under plain gradient descent of rate 1, a step is as long as the gradient."""
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    before = torch.cat([p.detach().flatten() for p in policy.network.parameters()])
    config = PPOConfig(epochs=1, minibatches=1, max_grad_norm=max_norm, learning_rate=1.0)
    optimizer = torch.optim.SGD(policy.network.parameters())
    metrics = ppo.update(policy, optimizer, [rollout], config, torch.Generator())
    step = float((torch.cat([p.detach().flatten() for p in policy.network.parameters()]) - before).norm())
    assert 0.2 < metrics["grad_norm"] < 1e3
    assert step == pytest.approx(min(metrics["grad_norm"], max_norm), rel=1e-2)


def test_the_update_has_no_python_loop_over_time(tree_world, collected, mode) -> None:
    """48 steps more are fewer than 48 calls more (a call or two may be the garbage collector's)."""

    def calls_of_update(steps: int) -> int:
        policy, rollout, _ = collected(tree_world(4, mode, end_rate=0.0), steps)
        config = PPOConfig(epochs=2, minibatches=2)
        optimizer, calls = ppo.make_optimizer(policy, config), 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            ppo.update(policy, optimizer, [rollout], config, torch.Generator().manual_seed(0))
        finally:
            sys.setprofile(None)
        return calls

    calls_of_update(16)  # whatever is made once is made
    assert abs(calls_of_update(64) - calls_of_update(16)) < 48


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(tree_world, collected, mode) -> None:
    policy, rollout, _ = collected(tree_world(6, mode), 24)
    rollout.advantages.targets.fill_(1e30)
    before = [p.clone() for p in policy.network.parameters()]
    config = PPOConfig()
    with pytest.raises(RuntimeError, match="gradient is not finite"):
        ppo.update(policy, ppo.make_optimizer(policy, config), [rollout], config, torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.network.parameters(), strict=True))


def test_advantages_are_normalised_for_each_head_over_the_rows_in_which_it_could_matter(
    tree_world, collected, mode
) -> None:
    _, rollout, _ = collected(tree_world(6, mode), 24)
    scale = AdvantageScale.of([rollout])
    for i in range(3):
        rows = rollout.head_advantages()[..., i][rollout.could_matter[..., i]]
        assert scale.mean[i] == pytest.approx(rows.mean().item(), abs=1e-5)
        assert scale.std[i] == pytest.approx(rows.std().item(), rel=1e-4)


@pytest.mark.parametrize("normalized", [True, False])
def test_an_environment_in_which_little_is_at_stake_teaches_as_much(tree_world, collected, mode, normalized) -> None:
    """Advantages of one environment a thousandth as large: the same weights after an update, if normalised."""
    config = PPOConfig(value_coefficient=0.0, normalize_advantages=normalized, epochs=1, minibatches=1)
    learned = []
    for stake in (1.0, 1e-3):
        torch.manual_seed(0)
        policy, first, _ = collected(tree_world(6, mode), 24)
        _, second, _ = collected(tree_world(5, mode), 24)
        for advantages in (second.advantages.op, second.advantages.sub):
            advantages.mul_(stake)
        ppo.update(policy, ppo.make_optimizer(policy, config), [first, second], config, torch.Generator())
        learned.append(torch.nn.utils.parameters_to_vector(policy.network.parameters()))
    assert torch.allclose(*learned, atol=1e-4) is normalized


def test_a_head_with_a_single_row_keeps_its_advantage(tree_world, collected, mode) -> None:
    _, rollout, _ = collected(tree_world(6, mode), 24)
    only = rollout.could_matter[..., 2].nonzero()[0]
    rollout.could_matter[..., 2] = False
    rollout.could_matter[*only, 2] = True
    scale = AdvantageScale.of([rollout])
    assert scale.mean[2] == 0
    assert scale.std[2] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma", 1.1), ("clip", -0.1), ("epochs", 0), ("minibatches", 0), ("learning_rate", 0.0), ("target_kl", -1.0)],
)
def test_options_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        PPOConfig(**{field: value})


def test_entropy_coefficients_of_unknown_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown heads \['nope'\]"):
        PPOConfig(head_entropy_coefficients={"nope": 1.0}).entropy_coefficients(BANDIT)
