"""The mean of trained policies."""

import pytest
import torch

from esper.cli import main
from esper.simic.control import RunningMeanStd
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.average import average
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.registry import SHIPPED


def a_policy(seed, hidden_dim=16):
    torch.manual_seed(seed)
    return LSTMPolicyBundle(FactoredRecurrentActorCritic(hidden_dim=hidden_dim, standardize=True))


def weights(policy):
    return policy.network.state_dict()


def test_every_weight_and_statistic_is_the_mean():
    policies = [a_policy(seed) for seed in range(3)]
    policies[0].network.standardizer.update(torch.randn(8, 126))
    before = [{name: tensor.clone() for name, tensor in weights(policy).items()} for policy in policies]
    mean = weights(average(policies))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(state[name] for state in before) / 3)
    for policy, state in zip(policies, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in weights(policy).items())
    assert not torch.equal(mean["standardizer.mean"], before[0]["standardizer.mean"])


def test_a_policy_averaged_with_itself_is_itself():
    shipped = LSTMPolicyBundle.load(SHIPPED)
    mean = average([shipped, shipped])
    assert mean.network.config == shipped.network.config
    assert mean.op_share == shipped.op_share < 1
    assert all(torch.equal(tensor, weights(shipped)[name]) for name, tensor in weights(mean).items())


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match="two or more policies to average, got 1"):
        average([a_policy(0)])
    policies = [a_policy(0), a_policy(1), a_policy(2, hidden_dim=32)]
    with pytest.raises(ValueError, match="the first and number 3 differ in hidden_dim"):
        average(policies)
    normalized = LSTMPolicyBundle(a_policy(0).network, observation_normalizer=RunningMeanStd((126,)))
    with pytest.raises(ValueError, match="with an observation normaliser cannot be averaged"):
        average([a_policy(0), normalized])
    broken = a_policy(1)
    with torch.no_grad():
        broken.network.critic.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in 'critic.bias' of policy number 2"):
        average([a_policy(0), broken])


def test_the_command_writes_the_mean_and_overwrites_nothing(tmp_path, capsys):
    for seed in range(2):
        a_policy(seed).save(tmp_path / str(seed))
    arguments = ["average", str(tmp_path / "0"), str(tmp_path / "1"), "--out", str(tmp_path / "mean")]
    assert main(arguments) == 0
    expected, written = weights(average([a_policy(0), a_policy(1)])), weights(LSTMPolicyBundle.load(tmp_path / "mean"))
    assert all(torch.equal(tensor, written[name]) for name, tensor in expected.items())
    assert LSTMPolicyBundle.load(tmp_path / "mean").op_share == 1
    assert main([*arguments[:-1], str(tmp_path / "other"), "--op-share", "0.1"]) == 0
    assert LSTMPolicyBundle.load(tmp_path / "other").op_share == 0.1
    assert main(arguments) == 2
    assert "holds a policy already" in capsys.readouterr().err
