"""Policies: what decides, and what it decides with."""

from esper.tamiyo.networks.masked_categorical import MaskedCategorical
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import InferenceHiddenWarning, LSTMPolicyBundle, PolicyInput
from esper.tamiyo.policy.protocol import Policy, RulePolicy, RunView
from esper.tamiyo.policy.registry import POLICIES, load_policy, make_policy
from esper.tamiyo.policy.rules import FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy

__all__ = [
    "POLICIES",
    "FixedSchedulePolicy",
    "HeuristicPolicy",
    "InferenceHiddenWarning",
    "LSTMPolicyBundle",
    "LearnedPolicy",
    "MaskedCategorical",
    "Policy",
    "PolicyInput",
    "RandomPolicy",
    "RulePolicy",
    "RunView",
    "WaitPolicy",
    "load_policy",
    "make_policy",
]
