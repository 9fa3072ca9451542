"""What a seed contributes, measured on the very same network with and without it: in loss, told in points of score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from esper.lifecycle import ACTIVE_STAGES, Stage
from esper.network.growing_network import GrowingNetwork

Evaluation = tuple[float, float]
"""(loss, score) on held-out data: the loss 0 or more, the score better the higher, at most 1."""

Evaluate = Callable[[], Evaluation]
"""Evaluates the host as it is now on held-out data."""


def gain(after: Evaluation, before: Evaluation) -> float:
    """What a change of a network is worth in points of score, told by its loss L.

    Of the points that the score s of the worse network misses, it is the share by which the loss differs:

        gain = (1 − s_before) · (1 − L_after / L_before)      where the loss falls
        gain = −(1 − s_after) · (1 − L_before / L_after)      where it rises

    A score counts samples that tip over, a loss also those that only move: of a young seed an accuracy on some hundred
    samples tells nothing, the loss on the same samples does. For an R², or any score that is 1 − loss / constant, this
    *is* the difference of scores; so a function that returns (1 − score, score) measures by the score itself.
    A network whose loss is not finite is worth nothing: loss infinite, score 0.

    Raises:
        ValueError: If a loss is below 0, since there are no shares of such a loss.

    Example:
        >>> round(gain((0.5, 0.9), (1.0, 0.7)), 6), round(gain((1.0, 0.7), (0.5, 0.9)), 6)
        (0.15, -0.15)
    """
    after, before = _worth(after), _worth(before)
    if after[0] == before[0]:
        return 0.0
    (large, score), (small, _) = sorted([after, before], reverse=True)
    size = (1 - score) * (1 - small / large)
    return size if after[0] < before[0] else -size


def _worth(evaluation: Evaluation) -> Evaluation:
    loss, score = evaluation
    if loss < 0:
        raise ValueError(
            f"contributions are shares of a loss of 0 or more, got the loss {loss}; measure them by a function that "
            "returns one, such as Growth(..., contributions=lambda: (1 - score(), score())), or contributions=False"
        )
    return (loss, score) if math.isfinite(loss) and math.isfinite(score) else (math.inf, 0.0)


@dataclass(frozen=True)
class Counterfactual:
    """A question about a network: how good would it be if one seed acted otherwise?

    Args:
        slot: Index of the slot.
        alpha: As if blended in at this alpha; ``None``: as if switched off.
        candidate: The blueprint whose candidate in the slot's nursery is asked about; ``None``: the seed.
    """

    slot: int
    alpha: float | None
    candidate: int | None = None


def contributions(
    network: GrowingNetwork, evaluate: Evaluate, baseline: tuple[float, float] | None = None
) -> dict[int, float]:
    """Measure every seed that is undecided, by slot index, and enter the results into the slots' state.

    - TRAINING: the :func:`gain` of the network as if the seed were blended in at alpha 1 over the network as it is.
    - BLENDING and HOLDING: the gain of the network at the alpha target over that with the seed switched off.
    - A seed that is being pruned is not measured any more.
    - A candidate that auditions: the gain as if it were the seed, at alpha 1. It is entered as the audition's result.

    ``evaluate`` runs once a seed (twice for one in mid-blend) and once a candidate, without gradients, and must put the
    host into evaluation mode itself. In a host with BatchNorm the running statistics are those of the network as it is,
    also where a seed is switched off.

    Args:
        network: The growing network.
        evaluate: (loss, score) of the host on held-out data, the same data at every call.
        baseline: What ``evaluate`` returns for the network as it is, where the caller has it already.

    Returns:
        Contribution by slot index, in points of score (0.01 is one point).
    """
    questions = counterfactuals(network)
    if not questions:
        return {}
    as_is = _evaluated(evaluate) if baseline is None else baseline
    return enter_contributions(network, as_is, {question: _ask(network, question, evaluate) for question in questions})


def counterfactuals(network: GrowingNetwork) -> list[Counterfactual]:
    """The questions whose answers :func:`enter_contributions` needs."""
    questions = []
    for index, slot in enumerate(network.slots):
        if slot.nursery is not None and slot.is_auditioning:
            questions += [Counterfactual(index, alpha=1.0, candidate=blueprint) for blueprint in slot.nursery.seeds]
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
    network: GrowingNetwork, as_is: Evaluation, answers: Mapping[Counterfactual, Evaluation]
) -> dict[int, float]:
    """Enter the contributions that follow from the evaluations into the slots' state.

    Args:
        network: The growing network, unchanged since :func:`counterfactuals`.
        as_is: Its evaluation.
        answers: The evaluation in each counterfactual.

    Returns:
        Contribution by slot index, in points of score (0.01 is one point).
    """
    found = {}
    for question, evaluation in answers.items():
        if question.candidate is not None:
            network.enter_audition(question.slot, question.candidate, gain(evaluation, as_is))
    answers = {question: evaluation for question, evaluation in answers.items() if question.candidate is None}
    for index in dict.fromkeys(question.slot for question in answers):
        mine = {question.alpha is not None: answers[question] for question in answers if question.slot == index}
        found[index] = gain(mine.get(True, as_is), mine.get(False, as_is))
        network.slots[index].enter_contribution(found[index])
    return found


def _ask(network: GrowingNetwork, question: Counterfactual, evaluate: Evaluate) -> Evaluation:
    if question.candidate is not None:
        with network.slots[question.slot].as_if_grown(question.candidate):
            return _evaluated(evaluate)
    if question.alpha is None:
        with network.switched_off(question.slot):
            return _evaluated(evaluate)
    with network.as_if_blended(question.slot, question.alpha):
        return _evaluated(evaluate)


@torch.no_grad()
def _evaluated(evaluate: Evaluate) -> Evaluation:
    return evaluate()
