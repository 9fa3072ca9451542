"""Policies: what decides, and what it decides with."""

from esper.tamiyo.policy.lstm_bundle import InferenceHiddenWarning, LSTMPolicyBundle, PolicyInput
from esper.tamiyo.policy.masked_categorical import MaskedCategorical

__all__ = ["InferenceHiddenWarning", "LSTMPolicyBundle", "MaskedCategorical", "PolicyInput"]
