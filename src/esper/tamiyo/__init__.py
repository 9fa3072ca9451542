"""Tamiyo decides: the policies that steer growth, or any agent with memory, masks and dependent heads."""

from esper.tamiyo.policy import InferenceHiddenWarning, LSTMPolicyBundle, MaskedCategorical, PolicyInput

__all__ = ["InferenceHiddenWarning", "LSTMPolicyBundle", "MaskedCategorical", "PolicyInput"]
