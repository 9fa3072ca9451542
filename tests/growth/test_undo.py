"""A step that fails leaves no trace: the same call, done right, gives what it would have given at once."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from esper.actions import Decision
from esper.lifecycle import IllegalMoveError, Op
from esper.network.governor import Governor
from esper.tamiyo.policy.rules import HeuristicPolicy
from growing import Loop
from network.hosts import advance, fossilize, germinate, prune, same

PLAN = (germinate("mlp"), advance(tempo="fast"), germinate("lora", 1), advance(1), prune(1, tempo="fast"), fossilize())


class Fumbling:
    """A run with the mistake that a user makes next in ``mistake``; without one it goes as planned."""

    def __init__(self, plan=PLAN):
        self.mistake = None
        self.loop = Loop(contributions=self.contributions).script(*plan)

    def evaluate(self):
        return self.mistake[1] if self.mistake and self.mistake[0] == "evaluate" else self.loop.evaluate()

    def contributions(self):
        return self.mistake[1] if self.mistake and self.mistake[0] == "contributions" else self.loop.evaluate()

    def step(self, mistake=None):
        """The end of an epoch; where the ``mistake`` makes it fail, its message."""
        self.mistake = mistake
        if mistake is None:
            return self.loop.growth.step(self.evaluate, self.loop.loss())
        with pytest.raises(ValueError, match=r"^\w+\(\) ") as error:
            self.loop.growth.step(self.evaluate, self.loop.loss())
        return str(error.value)

    def state(self):
        return state_of(self.loop)


def state_of(loop):
    """Everything about a run but what a clock says; nothing in it is shared with the run."""
    growth = loop.growth.state_dict()
    history = [{k: v for k, v in step.items() if "seconds" not in k} for step in growth["history"]]
    return copy.deepcopy([loop.model.state_dict(), loop.optimizer.state_dict(), growth | {"history": history}])


MISTAKES = [
    ("evaluate", None),
    ("evaluate", (0.5, 50.0)),
    ("contributions", {"loss": 0.5, "score": 0.5}),
    ("contributions", (0.5, 1.5)),
    ("contributions", (0.5,)),
    ("contributions", None),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
@pytest.mark.parametrize("batches", [3, 4])
def test_a_failed_step_changes_nothing(mistake, batches):
    right, wrong = Fumbling(), Fumbling()
    for epoch in range(7):
        for run in (right, wrong):
            run.loop.train(batches)
        if 1 <= epoch <= 5:  # while there is a seed to measure
            before = wrong.state()
            assert wrong.step(mistake).startswith(f"{mistake[0]}() must return a")
            assert same(wrong.state(), before)
        step = right.step()
        assert step.decided == wrong.step().decided
        assert same(wrong.state(), right.state())
    assert right.loop.stages == ["FOSSILIZED", "EMBARGOED"]


class Forgetful(HeuristicPolicy):
    """The heuristic, which counts in its memory how often it was asked, and at times answers nonsense."""

    nonsense: Any = None

    def decide(self, run):
        run.memory["asked"] = run.memory.get("asked", 0) + 1
        run.memory["drawn"] = run.rng.random()
        decision = super().decide(run)
        return decision if self.nonsense is None else self.nonsense(run)


def forbidden(run):
    return next(op for op in Op if op is not Op.WAIT and not run.allows(op, 1))


@pytest.mark.parametrize(
    ("nonsense", "error", "message"),
    [
        (lambda run: Decision(forbidden(run), 1), IllegalMoveError, "was asked of slot '3'"),
        (lambda run: germinate("conv", 1), ValueError, "blueprint 'conv' does not fit|GERMINATE was asked of slot '3'"),
        (lambda run: germinate("mlp", 7), ValueError, "slot must be from 0 to 1, got 7"),
        (lambda run: "wait", AttributeError, "'str' object"),
        (lambda run: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
    ids=["illegal", "misfit", "nowhere", "untyped", "broken"],
)
def test_a_decision_that_cannot_be_carried_out_changes_nothing(nonsense, error, message):
    loops = [Loop(policy=Forgetful(candidates=("mlp",), probation=2), horizon=7, rent=0.0) for _ in range(2)]
    right, wrong = loops
    for decision in range(6):
        for loop in loops:
            loop.train()
        before = state_of(wrong)
        wrong.growth.policy.nonsense = nonsense
        with pytest.raises(error, match=message):
            wrong.growth.step(wrong.evaluate)
        assert same(state_of(wrong), before)
        wrong.growth.policy.nonsense = None
        assert wrong.growth.step(wrong.evaluate).decided == right.growth.step(right.evaluate).decided
        assert same(state_of(wrong), state_of(right))
        ours, theirs = (loop.growth.policy._runs[0] for loop in loops)
        assert (ours.decision, ours.memory) == (theirs.decision, theirs.memory)
        assert ours.decision == decision + 1
    assert right.stages == ["FOSSILIZED", "FOSSILIZED"]


def test_what_would_have_been_measured_is_measured_after_a_failed_step():
    """The batch after the third was to be the measured one; a mistake in between must not make it an unmeasured one."""
    right, wrong = Fumbling(), Fumbling()
    for run in (right, wrong):
        run.loop.train(3)
    wrong.step(("evaluate", None))
    for run in (right, wrong):
        run.loop.train(1)
        run.step()
    assert same(wrong.state(), right.state())


@pytest.mark.parametrize("mistake", MISTAKES[2:], ids=str)
def test_a_rollback_is_taken_back_with_the_step_that_failed(mistake):
    right, wrong = Fumbling(PLAN[:4]), Fumbling(PLAN[:4])
    for run in (right, wrong):
        for _ in range(4):
            run.loop.train()
            run.step()
        run.loop.train()
        next(run.loop.model.parameters()).data.fill_(1e9)  # the loss is far off
    before = wrong.state()
    wrong.step(mistake)
    assert same(wrong.state(), before)
    assert wrong.step().rolled_back
    assert right.step().rolled_back
    assert same(wrong.state(), right.state())


def test_a_run_that_no_rollback_can_save_is_left_as_it_was():
    """Both evaluations give NaN: before the rollback and after it."""
    run = Fumbling()
    for _ in range(2):
        run.loop.train()
        run.step()
    run.loop.train()
    before = run.state()
    assert "no good state is left" in run.step(("evaluate", (math.nan, 0.5)))
    assert same(run.state(), before)


def test_a_governor_restores_what_it_was_shown():
    loop = Loop().script(*PLAN)
    loop.epochs(3)
    governor = Governor(loop.growth.network, loop.optimizer)
    state, before = governor.present(), copy.deepcopy([loop.model.state_dict(), loop.growth.network.state_dict()])
    loop.epochs(2)
    governor.restore(state)
    assert same([loop.model.state_dict(), loop.growth.network.state_dict()], before)
