"""The end of growth: every seed that nobody has decided on is judged, so that nothing undecided is left.

What a policy has decided stands: seeds that it kept for good stay, one whose prune has begun goes. Of the others,

- one that is still in isolation goes: the network has never felt it;
- one that is blended in stays, at the alpha that it has, if it contributes more than its rent, and goes otherwise.

Two seeds that do the same would both look as if they could go. So the one that is least worth its rent goes first, and
the others are measured again without it. Each that goes saves more rent than it contributed, so the objective J, told
in loss, never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from esper.growth.verdict import points
from esper.lifecycle import ACTIVE_STAGES, Stage
from esper.network.attribution import Evaluate, Evaluation, gain
from esper.network.growing_network import Event, GrowingNetwork
from esper.observation import doublings


@dataclass(frozen=True)
class Judgement:
    """What becomes of one seed at the end."""

    slot: int
    """Index of its slot."""
    stays: bool
    decided: bool
    """Whether it had been kept for good before: its contribution is measured, and that is all."""
    contribution: float | None
    """What it takes off the loss at the end, in points of score; ``None`` where it was not measured."""
    why: str
    """In words."""


def judge(
    network: GrowingNetwork, rent: float, evaluate: Evaluate | None, as_is: Evaluation | None = None
) -> list[Judgement]:
    """Judge every seed that there is; nothing is changed.

    Args:
        network: The growing network.
        rent: Price of a doubling of the parameters, in points of score.
        evaluate: (loss, score) of the host as it is; ``None``: what is blended in stays, unmeasured.
        as_is: What ``evaluate`` returns for the network as it is, where that is known already.

    Returns:
        One judgement a seed, in the order in which they were reached.
    """
    slots = network.slots
    found = [
        Judgement(i, False, False, None, "the policy had begun to prune it")
        if slot.life.pruning
        else Judgement(i, False, False, None, "it was still in isolation when growth ended")
        for i, slot in enumerate(slots)
        if slot.life.pruning or slot.stage is Stage.TRAINING
    ]
    acting = [
        i
        for i, slot in enumerate(slots)
        if slot.stage in (Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED) and not slot.life.pruning
    ]
    if evaluate is None:
        return found + [_unmeasured(network, i) for i in acting]
    with ExitStack() as gone:
        for slot in found:
            if slots[slot.slot].alpha > 0:
                gone.enter_context(network.switched_off(slot.slot))
                as_is = None
        while acting:
            measured = _measure(network, acting, rent, evaluate, as_is)
            open_ones = [judgement for judgement in measured if not judgement.decided]
            worst = min(open_ones, key=lambda j: _net(network, acting, rent, j), default=None)
            if worst is None or worst.stays:
                return found + measured
            found.append(worst)
            acting.remove(worst.slot)
            gone.enter_context(network.switched_off(worst.slot))
            as_is = None
    return found


def carry_out(network: GrowingNetwork, judgements: Sequence[Judgement]) -> list[Event]:
    """Do to the network what has been judged; what happened."""
    return [
        network.keep(judgement.slot) if judgement.stays else network.evict(judgement.slot)
        for judgement in judgements
        if not judgement.decided
    ]


def _unmeasured(network: GrowingNetwork, slot: int) -> Judgement:
    decided = network.slots[slot].stage not in ACTIVE_STAGES
    why = "" if decided else "contributions are not measured, so what is blended in stays"
    return Judgement(slot, True, decided, None, why)


def _measure(
    network: GrowingNetwork, acting: Sequence[int], rent: float, evaluate: Evaluate, as_is: Evaluation | None
) -> list[Judgement]:
    """A judgement on each of the seeds that act, as if they alone were there."""
    as_is = evaluate() if as_is is None else as_is
    found = []
    for slot in acting:
        with network.switched_off(slot):
            contribution = gain(as_is, evaluate())
        price = _rent_of(network, acting, slot, rent)
        stays, decided = contribution > price, network.slots[slot].stage not in ACTIVE_STAGES
        why = f"contribution {points(contribution)}, {'' if stays else 'not '}above its rent of {100 * price:.1f}"
        found.append(Judgement(slot, stays or decided, decided, contribution, "" if decided else why))
    return found


def _net(network: GrowingNetwork, acting: Sequence[int], rent: float, judgement: Judgement) -> float:
    assert judgement.contribution is not None
    return judgement.contribution - _rent_of(network, acting, judgement.slot, rent)


def _rent_of(network: GrowingNetwork, acting: Sequence[int], slot: int, rent: float) -> float:
    """What the removal of one seed would save, if those of ``acting`` are all that there are."""
    with_it = sum(network.slots[i].seed_params for i in acting)
    without = with_it - network.slots[slot].seed_params
    return rent * (doublings(network.host_params, with_it) - doublings(network.host_params, without))
