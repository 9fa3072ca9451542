"""Networks of the learned policies."""

from esper.tamiyo.networks.factored_lstm import ActionOutput, Evaluation, FactoredRecurrentActorCritic

__all__ = ["ActionOutput", "Evaluation", "FactoredRecurrentActorCritic"]
