"""What a seed contributes: the score with it less the score without it, measured on the very same network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from esper.growth.network import GrowingNetwork
from esper.growth.slot import Slot
from esper.lifecycle import ACTIVE_STAGES, Stage

Evaluate = Callable[[], tuple[float, float]]
"""Evaluates the host as it is now on held-out data: (loss, score); the score is better the higher, within [0, 1]."""


def contributions(
    network: GrowingNetwork, evaluate: Evaluate, baseline: tuple[float, float] | None = None
) -> dict[int, float]:
    """Measure every seed that is undecided, by slot index, and enter the results into the slots' books.

    - TRAINING: score as if blended in at alpha 1, less the score as it is.
    - BLENDING and HOLDING: score at the alpha target, less the score with the seed switched off.
    - A seed that is being pruned is not measured any more.

    ``evaluate`` runs once a seed (twice for one in mid-blend), without gradients, and must put the host into evaluation
    mode itself. A score that is not finite counts as 0, the worst. In a host with BatchNorm the running statistics are
    those of the network as it is, also where a seed is switched off.

    Args:
        network: The growing network.
        evaluate: (loss, score) of the host on held-out data, the same data at every call.
        baseline: What ``evaluate`` returns for the network as it is, where the caller has it already.

    Returns:
        Contribution by slot index, as a difference of scores.

    Raises:
        ValueError: If ``evaluate`` returns anything but a pair of numbers.
    """
    undecided = [i for i, s in enumerate(network.slots) if s.stage in ACTIVE_STAGES and not s.life.pruning]
    if not undecided:
        return {}
    as_is = _score(evaluate if baseline is None else lambda: baseline)
    found = {index: _contribution(network, index, evaluate, as_is) for index in undecided}
    for index, value in found.items():
        network.slots[index].enter_contribution(value)
    return found


def _contribution(network: GrowingNetwork, index: int, evaluate: Evaluate, as_is: float) -> float:
    slot = network.slots[index]
    if _acts_at_target(slot):
        score_with = as_is
    else:
        with network.as_if_blended(index):
            score_with = _score(evaluate)
    if slot.stage is Stage.TRAINING:
        return score_with - as_is
    with network.switched_off(index):
        return score_with - _score(evaluate)


def _acts_at_target(slot: Slot) -> bool:
    return slot.stage is not Stage.TRAINING and slot.alpha == slot.life.alpha_target


@torch.no_grad()
def _score(evaluate: Evaluate) -> float:
    result = evaluate()
    try:
        _, score = result
        score = float(score)
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluate() must return a pair of numbers, (loss, score); got {result!r}") from error
    return score if math.isfinite(score) else 0.0
