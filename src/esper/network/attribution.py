"""What a seed contributes: the score with it less the score without it, measured on the very same network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from esper.lifecycle import ACTIVE_STAGES, Stage
from esper.network.growing_network import GrowingNetwork

Evaluate = Callable[[], tuple[float, float]]
"""Evaluates the host as it is now on held-out data: (loss, score); the score is better the higher, at most 1."""


@dataclass(frozen=True)
class Counterfactual:
    """A question about a network: what would its score be if one seed acted otherwise?

    Args:
        slot: Index of the slot.
        alpha: As if blended in at this alpha; ``None``: as if switched off.
    """

    slot: int
    alpha: float | None


def contributions(
    network: GrowingNetwork, evaluate: Evaluate, baseline: tuple[float, float] | None = None
) -> dict[int, float]:
    """Measure every seed that is undecided, by slot index, and enter the results into the slots' state.

    - TRAINING: score as if blended in at alpha 1, less the score as it is.
    - BLENDING and HOLDING: score at the alpha target, less the score with the seed switched off.
    - A seed that is being pruned is not measured any more.

    ``evaluate`` runs once a seed (twice for one in mid-blend), without gradients, and must put the host into evaluation
    mode itself. A score that is not finite counts as the worst: 0, or the lowest of the others, if that is below. In a
    host with BatchNorm the running statistics are those of the network as it is, also where a seed is switched off.

    Args:
        network: The growing network.
        evaluate: (loss, score) of the host on held-out data, the same data at every call.
        baseline: What ``evaluate`` returns for the network as it is, where the caller has it already.

    Returns:
        Contribution by slot index, as a difference of scores.
    """
    questions = counterfactuals(network)
    if not questions:
        return {}
    as_is = _score(evaluate if baseline is None else lambda: baseline)
    return enter_contributions(network, as_is, {question: _ask(network, question, evaluate) for question in questions})


def counterfactuals(network: GrowingNetwork) -> list[Counterfactual]:
    """The questions whose answers :func:`enter_contributions` needs."""
    questions = []
    for index, slot in enumerate(network.slots):
        if slot.stage not in ACTIVE_STAGES or slot.life.pruning:
            continue
        if slot.stage is Stage.TRAINING:
            questions.append(Counterfactual(index, alpha=1.0))
            continue
        if slot.alpha != slot.life.alpha_target:
            questions.append(Counterfactual(index, alpha=slot.life.alpha_target))
        questions.append(Counterfactual(index, alpha=None))
    return questions


def enter_contributions(
    network: GrowingNetwork, as_is: float, answers: Mapping[Counterfactual, float]
) -> dict[int, float]:
    """Enter the contributions that follow from the scores into the slots' state.

    Args:
        network: The growing network, unchanged since :func:`counterfactuals`.
        as_is: Its score.
        answers: The score in each counterfactual.

    Returns:
        Contribution by slot index, as a difference of scores.
    """
    worst = min([0.0, *(score for score in (as_is, *answers.values()) if math.isfinite(score))])
    as_is = as_is if math.isfinite(as_is) else worst
    scores = {(q.slot, q.alpha is not None): s if math.isfinite(s) else worst for q, s in answers.items()}
    found = {}
    for index in dict.fromkeys(question.slot for question in answers):
        found[index] = scores.get((index, True), as_is) - scores.get((index, False), as_is)
        network.slots[index].enter_contribution(found[index])
    return found


def _ask(network: GrowingNetwork, question: Counterfactual, evaluate: Evaluate) -> float:
    if question.alpha is None:
        with network.switched_off(question.slot):
            return _score(evaluate)
    with network.as_if_blended(question.slot, question.alpha):
        return _score(evaluate)


@torch.no_grad()
def _score(evaluate: Evaluate) -> float:
    _, score = evaluate()
    return score
