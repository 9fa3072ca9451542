"""The end of growth: every seed is judged, and nothing undecided is left."""

from __future__ import annotations

import pytest
import torch

from esper.actions import Decision
from esper.growth.judgement import judge
from esper.lifecycle import ACTIVE_STAGES, IllegalMoveError, Op
from esper.network.slot import Mode
from esper.observation import doublings
from growing import Loop, grown_modules


def germinate(blueprint="mlp", slot=0):
    return Decision(Op.GERMINATE, slot, blueprint)


def advance(slot=0, **choices):
    return Decision(Op.ADVANCE, slot, **choices)


GROWN = (germinate(), advance(), Decision())


def undecided(loop):
    return [slot.name for slot in loop.growth.network.slots if slot.stage in ACTIVE_STAGES]


@pytest.mark.parametrize(("rent", "stays"), [(0.0, True), (5.0, False)])
def test_the_last_step_judges_a_seed_on_probation_by_its_contribution_against_its_rent(rent, stays):
    loop = Loop(horizon=6, rent=rent).script(*GROWN)
    steps = loop.epochs(6)
    assert undecided(loop) == []
    assert loop.stages[0] == ("FOSSILIZED" if stays else "EMBARGOED")
    assert grown_modules(loop.growth.grown_model()) == (["1"] if stays else [])
    assert steps[-1].judged["1"].startswith("contribution +")
    assert ("not above" in steps[-1].judged["1"]) == (not stays)
    assert steps[-1].contributions["1"] > 0
    assert loop.growth.finished


@pytest.mark.parametrize("rent", [0.0, 5.0])
def test_the_last_score_is_that_of_the_network_that_leaves(rent):
    loop = Loop(horizon=6, rent=rent).script(*GROWN)
    steps = loop.epochs(6)
    with torch.no_grad():
        assert loop.evaluate(loop.growth.grown_model().eval()) == pytest.approx((steps[-1].loss, steps[-1].score))
    assert loop.growth.result().added_params == sum(slot.seed_params for slot in loop.growth.network.slots)


def test_what_the_policy_has_decided_stands():
    loop = Loop(horizon=8, rent=5.0).script(*GROWN, Decision(Op.FOSSILIZE, 0), germinate("lora", 1), advance(1))
    steps = loop.epochs(8)
    assert loop.stages == ["FOSSILIZED", "EMBARGOED"]
    assert set(steps[-1].judged) == {"3"}
    assert set(steps[-1].contributions) == {"1", "3"}  # measured, and no more


def test_a_prune_that_has_begun_ends():
    loop = Loop(horizon=5, rent=0).script(*GROWN[:2], Decision(), Decision(Op.PRUNE, 0, tempo="slow"))
    steps = loop.epochs(5)
    assert steps[-1].judged == {"1": "the policy had begun to prune it"}
    assert grown_modules(loop.growth.grown_model()) == []


def test_a_seed_in_mid_blend_is_kept_as_it_is():
    loop = Loop(rent=0).script(germinate(), advance(tempo="slow"))
    loop.epochs(4)
    loop.train(1)
    slot = loop.growth.network.slots[0]
    alpha = slot.alpha
    assert 0 < alpha < 1
    with torch.no_grad():
        before = loop.model.eval()(loop.x)
    loop.growth.finish(loop.evaluate)
    assert (slot.stage.name, slot.alpha) == ("FOSSILIZED", alpha)
    with torch.no_grad():
        assert torch.equal(loop.model.eval()(loop.x), before)
    loop.epochs(2)
    assert slot.alpha == alpha


def test_of_two_seeds_that_do_the_same_one_stays():
    loop = Loop(rent=0.01).script(germinate("mlp", 0), advance(0), germinate("lora", 1), advance(1))
    loop.epochs(5)
    slots = loop.growth.network.slots

    def either():
        return (0.1, 0.9) if any(slot._mode is Mode.BLENDED for slot in slots) else (1.0, 0.0)

    judged = {one.slot: one.stays for one in judge(loop.growth.network, 0.01, either)}
    assert judged == {0: False, 1: True}  # alone, both look as if they could go; the larger one goes
    assert loop.stages == ["HOLDING", "HOLDING"]  # nothing has been done yet


@pytest.mark.parametrize("rent", [0.0, 0.01, 0.03, 0.1])
def test_the_objective_never_falls_by_it(rent):
    def shares():  # by a score that is 1 − loss, contributions are differences of scores
        loss, _ = loop.evaluate()
        return loss, 1 - loss

    loop = Loop(rent=rent, contributions=shares)
    loop.script(germinate("mlp_large", 0), advance(0), germinate("lora", 1), advance(1))
    loop.epochs(7)
    network = loop.growth.network

    def objective():
        return shares()[1] - rent * doublings(network.host_params, network.added_params)

    before = objective()
    loop.growth.finish(loop.evaluate)
    assert objective() >= before - 1e-6
    assert undecided(loop) == []


def test_without_contributions_what_is_blended_in_stays_and_what_is_not_goes():
    loop = Loop(horizon=6, contributions=False, rent=5.0).script(*GROWN, germinate("lora", 1))
    steps = loop.epochs(6)
    assert loop.stages == ["FOSSILIZED", "EMBARGOED"]
    assert "not measured" in steps[-1].judged["1"]
    assert "in isolation" in steps[-1].judged["3"]
    assert loop.growth.result().seeds[0].contributed == ""


def test_an_error_in_the_last_evaluation_leaves_everything_as_it_was():
    loop = Loop(horizon=6, rent=5.0).script(*GROWN)
    loop.epochs(5)
    loop.train()
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == 3:  # after the seed has been judged: the network without it
            raise ZeroDivisionError
        return loop.evaluate()

    with pytest.raises(ZeroDivisionError):
        loop.growth.step(fails)
    assert loop.stages[0] == "HOLDING"
    assert not loop.growth.finished
    assert len(loop.growth.history) == 5
    step = loop.growth.step(loop.evaluate)
    assert (step.decision, loop.stages[0]) == (6, "EMBARGOED")


def test_after_the_end_a_rollback_does_not_bring_undecided_seeds_back():
    loop = Loop(horizon=6, rent=5.0).script(*GROWN)
    loop.epochs(6)
    loop.train()
    with torch.no_grad():
        next(loop.model.parameters())[0, 0] = float("nan")
    assert loop.growth.step(loop.evaluate).rolled_back
    assert undecided(loop) == []


def test_only_what_is_blended_in_and_undecided_is_kept():
    loop = Loop().script(germinate())
    loop.epochs(2)
    with pytest.raises(IllegalMoveError):
        loop.growth.network.keep(0)  # in isolation
    with pytest.raises(IllegalMoveError):
        loop.growth.network.keep(1)  # empty
