"""Tamiyo decides: the policies that steer growth, or any agent with memory, masks and dependent heads."""

from esper.actions import HEAD_NAMES
from esper.tamiyo.networks import FactoredRecurrentActorCritic, HiddenState, NetworkConfig
from esper.tamiyo.policy import (
    POLICIES,
    FixedSchedulePolicy,
    HeuristicPolicy,
    InferenceHiddenWarning,
    LearnedPolicy,
    LSTMPolicyBundle,
    MaskedCategorical,
    Policy,
    PolicyInput,
    RandomPolicy,
    RulePolicy,
    RunView,
    WaitPolicy,
    load_policy,
    make_policy,
)

__all__ = [
    "HEAD_NAMES",
    "POLICIES",
    "FactoredRecurrentActorCritic",
    "FixedSchedulePolicy",
    "HeuristicPolicy",
    "HiddenState",
    "InferenceHiddenWarning",
    "LSTMPolicyBundle",
    "LearnedPolicy",
    "MaskedCategorical",
    "NetworkConfig",
    "Policy",
    "PolicyInput",
    "RandomPolicy",
    "RulePolicy",
    "RunView",
    "WaitPolicy",
    "load_policy",
    "make_policy",
]
