"""Growth stopped at every stage and resumed: bit for bit the run that was never stopped."""

from __future__ import annotations

import io

import pytest
import torch

from esper.lifecycle import Op
from esper.tamiyo.policy.rules import HeuristicPolicy
from growing import Loop
from network.hosts import WAIT, advance, fossilize, germinate, prune, retarget, same

PLAN = (
    germinate("mlp"),  # DORMANT → TRAINING
    advance(tempo="standard", curve="cosine"),  # BLENDING, stopped in mid-blend three times
    germinate("lora", 1, "gate"),
    advance(1),
    prune(1, tempo="fast"),
    retarget(tempo="fast", target=0.5),
    WAIT,
    fossilize(),
)
EPOCHS = 12


def state(loop):
    return [loop.model.state_dict(), loop.optimizer.state_dict(), loop.growth.network.state_dict()]


def fresh(kind, policy=None):
    return Loop(kind, policy=policy) if policy else Loop(kind).script(*PLAN)


def stop(loop):
    file = io.BytesIO()
    parts = {"growth": loop.growth, "model": loop.model, "optimizer": loop.optimizer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resume(loop, saved):
    loop.growth.load_state_dict(saved["growth"])
    loop.model.load_state_dict(saved["model"])
    loop.optimizer.load_state_dict(saved["optimizer"])
    return loop


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_run_resumes_bit_for_bit_from_every_stage(kind):
    straight = fresh(kind)
    straight.epochs(EPOCHS)
    stages = set()
    going = fresh(kind)
    for epoch in range(EPOCHS):
        going = resume(fresh(kind), stop(going))  # stopped and started again after every epoch
        stages |= set(going.stages)
        going.epochs(1)
        assert going.growth.history[-1].decision == epoch + 1
    assert stages >= {"DORMANT", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED", "EMBARGOED"}
    assert same(state(going), state(straight))
    ours, theirs = going.growth.history, straight.growth.history
    assert [(s.loss, s.contributions, s.events) for s in ours] == [(s.loss, s.contributions, s.events) for s in theirs]


def test_a_run_resumes_in_the_middle_of_an_epoch_and_rolls_back_to_the_same_state():
    def end(loop):
        loop.train(2)
        with torch.no_grad():
            next(loop.model.parameters()).fill_(float("nan"))
        assert loop.growth.step(loop.evaluate).rolled_back
        loop.epochs(1)
        return state(loop)

    def fresh(kind):
        return Loop(kind).script(*PLAN[:2])

    straight, stopped = fresh("vector"), fresh("vector")
    for loop in (straight, stopped):
        loop.epochs(3)
        loop.train(1)
    assert same(end(resume(fresh("vector"), stop(stopped))), end(straight))


def test_a_policy_remembers_what_it_saw():
    policy = lambda: HeuristicPolicy(probation=1)  # noqa: E731
    straight, stopped = fresh("vector", policy()), fresh("vector", policy())
    straight.epochs(10)
    stopped.epochs(4)
    resumed = resume(fresh("vector", policy()), stop(stopped))
    resumed.epochs(6)
    assert [s.decided for s in resumed.growth.history] == [s.decided for s in straight.growth.history]
    assert any(Op.FOSSILIZE.name in s.decided or Op.PRUNE.name in s.decided for s in straight.growth.history[4:])


def test_a_checkpoint_of_another_host_is_refused_and_changes_nothing():
    loop, other = fresh("vector"), fresh("image")
    loop.epochs(2)
    other.epochs(2)
    before = stop(loop)
    with pytest.raises(ValueError, match="the state is of another host"):
        loop.growth.load_state_dict(other.growth.state_dict())
    with pytest.raises(ValueError, match="expected the state of a Growth"):
        loop.growth.load_state_dict({"weights": 1})
    with pytest.raises(ValueError, match="saved with governor=True"):
        Loop(governor=False).growth.load_state_dict(loop.growth.state_dict())
    assert same(stop(loop), before)


@pytest.mark.parametrize("horizon", [7, None])
def test_a_growth_that_had_come_to_its_horizon_goes_on_with_a_larger_one(horizon):
    plan = [germinate("mlp"), advance(), fossilize(), WAIT, germinate("norm", 1), WAIT]
    short = Loop(horizon=4).script(*plan)
    short.epochs(4)
    assert short.growth.finished
    longer = resume(Loop(horizon=horizon).script(*plan), stop(short))
    assert not longer.growth.finished
    longer.epochs(2)
    assert longer.growth.history[-1].decided == "GERMINATE norm (add) in 3"
    longer.epochs(1)
    assert longer.growth.finished == (horizon == 7)


def test_a_growth_resumed_with_its_own_horizon_or_finished_by_hand_stays_finished():
    short = Loop(horizon=4).script(germinate("mlp"))
    short.epochs(4)
    assert resume(Loop(horizon=4), stop(short)).growth.finished
    by_hand = Loop(horizon=9).script(germinate("mlp"))
    by_hand.epochs(2)
    by_hand.growth.finish(by_hand.evaluate)
    assert resume(Loop(horizon=20), stop(by_hand)).growth.finished


def test_a_smaller_horizon_ends_growth_at_once():
    going = Loop(horizon=9).script(germinate("mlp"))
    going.epochs(3)
    shorter = resume(Loop(horizon=3).script(germinate("mlp")), stop(going))
    shorter.epochs(1)
    assert shorter.growth.finished
