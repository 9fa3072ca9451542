"""Auditions in a user's loop: the budget holds, a run resumes, averages follow, and the bill says what it cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from esper.actions import BLUEPRINT_NAMES
from esper.auditions import Auditions
from esper.network.placing import is_of_seed
from growing import Loop
from growth.test_resume import resume, state, stop
from network.hosts import WAIT, advance, germinate, of_host, same


def plan(loop: Loop) -> Loop:
    return loop.script(WAIT, WAIT, germinate("mlp"), advance(), WAIT, WAIT, germinate("norm", 1))


@pytest.mark.parametrize("kind", ["vector", "causal", "image"])
def test_the_host_does_not_feel_an_audition(kind: str) -> None:
    loop, quiet = Loop(kind, auditions=Auditions()), Loop(kind)
    for _ in range(4):
        loop.epochs(1)
        quiet.epochs(1)
        assert same(dict(of_host(loop.model.state_dict().items())), dict(quiet.model.state_dict()))
    assert loop.growth.network.slots[0].life.auditioned


def test_a_run_resumes_bit_for_bit_from_the_middle_of_an_audition() -> None:
    def fresh() -> Loop:
        return plan(Loop(auditions=Auditions()))

    straight, going = fresh(), fresh()
    straight.epochs(9)
    for _ in range(9):
        going = resume(fresh(), stop(going))
        going.epochs(1)
    assert same(state(going), state(straight))
    ours, theirs = going.growth.history, straight.growth.history
    assert [(s.loss, s.decided, s.evaluations) for s in ours] == [(s.loss, s.decided, s.evaluations) for s in theirs]


def test_the_end_takes_all_candidates_out() -> None:
    loop = Loop(auditions=Auditions(), horizon=3)
    loop.epochs(2)
    assert any(is_of_seed(name) for name, _ in loop.model.named_parameters())
    loop.epochs(1)
    assert loop.growth.finished
    assert not any(is_of_seed(name) for name, _ in loop.model.named_parameters())


def test_each_candidate_is_one_evaluation_more() -> None:
    loop = Loop(auditions=Auditions(halving=False))
    _, second = loop.epochs(2)
    slots = loop.growth.network.slots
    assert second.evaluations == 1 + sum(len(slot.nursery.seeds) for slot in slots)
    assert second.auditions == {
        slot.name: {BLUEPRINT_NAMES[b]: result.gain for b, result in slot.life.auditioned.items()} for slot in slots
    }
    assert second.added_params == 0


def test_an_average_is_asked_about_candidates_as_the_live_network_is() -> None:
    loop = Loop(auditions=Auditions(halving=False))
    average = AveragedModel(loop.model, avg_fn=lambda _, live, __: live)  # always the live weights
    loop.growth.follow(average)
    loop.train()
    loop.growth.step(loop.evaluate)
    loop.train()
    average.update_parameters(loop.model)
    live = copy.deepcopy(loop.growth.network.slots[0].life.auditioned)
    loop.growth.step(lambda: loop.evaluate(average.eval()))
    by_average = loop.growth.network.slots[0].life.auditioned
    assert not live
    assert all(result.gain != 0 for result in by_average.values())
    twin = plan(Loop(auditions=Auditions(halving=False)))
    twin.epochs(2)
    for blueprint, result in twin.growth.network.slots[0].life.auditioned.items():
        assert by_average[blueprint].gain == pytest.approx(result.gain, abs=1e-6)


def test_a_step_that_fails_leaves_results_as_they_were() -> None:
    loop = Loop(auditions=Auditions())
    loop.epochs(2)
    loop.train()
    before = copy.deepcopy(loop.growth.network.slots[0].life)

    calls = []

    def broken() -> tuple[float, float]:
        calls.append(1)
        return loop.evaluate() if len(calls) < 5 else (1 / 0, 0.0)

    with pytest.raises(ZeroDivisionError):
        loop.growth.step(broken)
    assert loop.growth.network.slots[0].life == before


def test_the_rule_that_lives_by_auditions_brings_them() -> None:
    assert Loop(policy="audition").growth.network.auditions == Auditions()
    own = Auditions(decisions=1, blueprints=("mlp",))
    assert Loop(policy="audition", auditions=own).growth.network.auditions == own
    assert Loop(policy="heuristic").growth.network.auditions is None


def test_the_rule_grows_what_its_audition_put_first() -> None:
    loop = Loop(policy="audition", horizon=20, rent=0.0)
    steps = loop.epochs(12)
    (first, *_) = [step for step in steps if "GERMINATE" in step.decided]
    before = steps[first.decision - 2]
    assert "WAIT" in before.decided
    assert any("ADVANCE" in step.decided for step in steps)
    assert any(slot.alpha == 1 for slot in loop.growth.network.slots)
    assert torch.isfinite(loop.loss())
    assert any(name in first.decided for name in BLUEPRINT_NAMES)
