"""Tamiyo as a policy, and what she decides when she is shown other runs than her own."""

import numpy as np
import pytest
import torch

from esper.actions import HEADS
from esper.observation import features_size
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

SLOTS, RUNS, STEPS = 3, 4, 5


class Recorder(LSTMPolicyBundle):
    """Keeps the features that it is asked about."""

    def __init__(self) -> None:
        super().__init__(FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8))
        self.seen: list[np.ndarray] = []

    def act(self, inputs, *args, **kwargs):
        self.seen.append(inputs.features.numpy().copy())
        return super().act(inputs, *args, **kwargs)


def observations(seed=0):
    rng = np.random.default_rng(seed)
    masks = {name: np.ones((RUNS, size), dtype=bool) for name, size in HEADS.sizes(SLOTS).items()}
    masks["slot"] = np.ones((RUNS, HEADS.sizes(SLOTS)["op"], SLOTS), dtype=bool)
    masks["blueprint"] = np.ones((RUNS, SLOTS, HEADS.sizes(SLOTS)["blueprint"]), dtype=bool)
    for _ in range(STEPS):
        yield {
            "features": rng.normal(size=(RUNS, features_size(SLOTS))).astype(np.float32),
            "blueprints": np.full((RUNS, SLOTS), -1),
            "action_mask": masks,
        }


def shown(**options) -> np.ndarray:
    """[STEPS, RUNS, D]: what the network is asked about."""
    torch.manual_seed(0)
    bundle = Recorder()
    policy = LearnedPolicy(bundle, **options)
    policy.reset(RUNS, seed=1)
    for observation in observations():
        policy.act(observation)
    return np.stack(bundle.seen)


def test_she_is_shown_her_own_runs():
    assert np.array_equal(shown(), np.stack([o["features"] for o in observations()]))


def test_shuffled_she_is_shown_the_other_runs_of_the_same_decision():
    own, seen = shown(), shown(shuffle_observations=True)
    assert not np.array_equal(seen, own)
    assert np.array_equal(np.sort(seen, axis=1), np.sort(own, axis=1))


@pytest.mark.parametrize("slots", [2, 3, 5])
def test_foreign_runs_are_shown_at_the_same_decision_whatever_their_slots(slots):
    rng = np.random.default_rng(3)
    foreign = [rng.normal(size=(STEPS, features_size(slots))).astype(np.float32) for _ in range(6)]
    seen = shown(foreign_observations=foreign)
    lenders = set()
    for t in range(STEPS):
        for row in range(RUNS):
            lender = next(i for i, run in enumerate(foreign) if np.array_equal(run[t, :24], seen[t, row, :24]))
            lenders.add(lender)
            theirs = foreign[lender][t, 24:].reshape(slots, 34)
            mine = seen[t, row, 24:].reshape(SLOTS, 34)
            assert all(np.array_equal(mine[slot], theirs[slot % slots]) for slot in range(SLOTS))
    assert len(lenders) > 3


class Waverer(LSTMPolicyBundle):
    """At every decision it waits with 0.6 and germinates with 0.4, and its critic prefers to germinate by ``gain``."""

    def __init__(self, gain: float, op_share: float = 0.3) -> None:
        super().__init__(FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8), op_share=op_share)
        with torch.no_grad():
            ops = self.network.tree.output_sizes[0]
            self.network.tree.output.weight.zero_()
            self.network.tree.output.bias[:ops] = torch.tensor([0.6, 0.4, 1e-4, 1e-4, 1e-4, 1e-4]).log()
            self.network.critic.weight.zero_()
            self.network.critic.bias.zero_()
            self.network.critic.bias[2] = gain  # v, then the six ops
            self.network.critic.bias[6] = 10.0  # an op that the policy hardly ever takes


@pytest.mark.parametrize(("gain", "share", "op"), [(0.1, 0.3, 1), (-0.1, 0.3, 0), (0.1, 1.0, 0)])
def test_of_the_ops_that_she_takes_now_and_then_she_decides_for_the_most_valuable(gain, share, op):
    policy = LearnedPolicy(Waverer(gain, share))
    policy.reset(RUNS, seed=1)
    for observation in observations():
        assert policy.act(observation)["op"].tolist() == [op] * RUNS


def test_drawn_decisions_follow_the_probabilities():
    policy = LearnedPolicy(Waverer(0.1), deterministic=False)
    policy.reset(RUNS, seed=1)
    ops = np.concatenate([policy.act(o)["op"] for _ in range(100) for o in observations()])
    assert np.mean(ops == 1) == pytest.approx(0.4, abs=0.05)


# ---------------------------------------------------------------------- why


@pytest.mark.parametrize("deterministic", [True, False])
def test_she_says_how_probable_each_choice_was_and_what_each_op_was_worth(deterministic):
    torch.manual_seed(0)
    bundle = LSTMPolicyBundle(FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8))
    policy = LearnedPolicy(bundle, deterministic=deterministic)
    policy.reset(RUNS, seed=1)
    assert policy.reasons == []
    taken = []
    hidden = bundle.initial_hidden(RUNS)
    for observation in observations():
        actions = policy.act({**observation, "slot_names": ("a", "b", "c")})
        _, before, out, _ = policy._latest
        assert all(torch.equal(one, other) for one, other in zip(before, hidden, strict=True))
        hidden = out.hidden
        for row, reason in enumerate(policy.reasons):
            op = int(actions["op"][row])
            used = {head.name for head in HEADS if HEADS.is_used(head.name, {"op": op})}
            assert set(reason.probabilities) == used
            for head in used:
                assert sum(reason.probabilities[head].values()) == pytest.approx(1, abs=1e-5)
                names = HEADS.named(head).choices or ("a", "b", "c")
                said = reason.probabilities[head][names[actions[head][row]]]
                assert said == pytest.approx(float(out.log_probs[head][row].exp()), abs=1e-5)
            assert list(reason.op_values.values()) == pytest.approx(out.op_values[row].tolist())
            taken.append(op)
    assert len(set(taken)) > 1 or deterministic


def test_of_ops_that_are_not_allowed_she_says_nothing():
    policy = LearnedPolicy(LSTMPolicyBundle(FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8)))
    policy.reset(RUNS, seed=1)
    observation = next(observations())
    observation["action_mask"]["op"][:, 1:] = False
    policy.act(observation)
    assert [set(reason.op_values) for reason in policy.reasons] == [{"WAIT"}] * RUNS
    assert [reason.probabilities for reason in policy.reasons] == [{"op": {"WAIT": 1.0}}] * RUNS
