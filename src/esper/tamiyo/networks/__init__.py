"""Networks of the learned policies; they know nothing of growth."""

from esper.tamiyo.networks.checks import HiddenState
from esper.tamiyo.networks.config import NetworkConfig, NetworkOptions
from esper.tamiyo.networks.factored_lstm import ActionOutput, Evaluation, FactoredRecurrentActorCritic
from esper.tamiyo.networks.masked_categorical import MaskedCategorical

__all__ = [
    "ActionOutput",
    "Evaluation",
    "FactoredRecurrentActorCritic",
    "HiddenState",
    "MaskedCategorical",
    "NetworkConfig",
    "NetworkOptions",
]
