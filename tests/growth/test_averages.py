"""Averages of weights grow along with the network, or are refused; never are two modules' weights mixed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import esper
from growing import Loop
from network.hosts import WAIT, advance, germinate, host_case, prune, retarget, wake

KINDS = ["vector", "sequence", "causal", "image"]


def names(model):
    return [name for name, _ in model.named_parameters()]


def answers(model, x):
    with torch.no_grad():
        return model.eval()(x)


def train(loop, averaged, batches=3):
    for _ in range(batches):
        loop.train(1)
        averaged.update_parameters(loop.model)


LATEST = {"avg_fn": lambda averaged, model, n: model.clone()}
"""An average that is the latest value: with it copy and host must answer alike, whatever has grown."""


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_average_of_the_latest_value_answers_as_the_network_does(kind, use_buffers):
    plan = [germinate("mlp"), advance(tempo="fast"), germinate("norm", 1), retarget(target=0.7), advance(1), prune(0)]
    loop = Loop(kind).script(*plan, WAIT)
    averaged = AveragedModel(loop.model, use_buffers=use_buffers, **LATEST)
    loop.growth.follow(averaged)
    for _ in plan:
        train(loop, averaged)
        loop.growth.step(loop.evaluate)
        assert names(averaged.module) == names(loop.model)
        torch.testing.assert_close(answers(averaged, loop.x), answers(loop.model, loop.x))
    assert loop.stages == ["EMBARGOED", "HOLDING"]


def test_a_moving_average_is_that_of_the_networks_own_history():
    """The seed's average begins where it was when it was blended in; the host's knows nothing of it."""
    decay = 0.9
    loop = Loop().script(germinate("mlp"), WAIT, advance())
    averaged = AveragedModel(loop.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    loop.growth.follow(averaged)
    expected: dict[str, torch.Tensor] = {}
    for epoch in range(6):
        for _ in range(3):
            loop.train(1)
            averaged.update_parameters(loop.model)
            for name, p in loop.model.named_parameters():
                expected[name] = torch.lerp(expected[name], p, 1 - decay) if name in expected else p.detach().clone()
        if epoch < 3:
            expected = {name: value for name, value in expected.items() if "esper_seed" not in name}
        loop.growth.step(loop.evaluate)
        for name, p in loop.model.named_parameters():
            expected.setdefault(name, p.detach().clone())
    ours = dict(averaged.module.named_parameters())
    assert list(ours) == names(loop.model)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_that_does_not_follow_is_refused_once_the_structure_has_changed(use_buffers):
    loop = Loop().script(germinate("mlp"))
    averaged = AveragedModel(loop.model, use_buffers=use_buffers)
    train(loop, averaged)
    loop.growth.step(loop.evaluate)
    before = copy.deepcopy(averaged.state_dict())
    with pytest.raises(ValueError, match=r"had other seeds than now.*growth\.follow\(averaged\)"):
        averaged.update_parameters(loop.model)
    assert all(torch.equal(value, before[name]) for name, value in averaged.state_dict().items())
    loop.growth.follow(averaged)
    train(loop, averaged)


def test_an_average_made_in_the_middle_of_growth_keeps_what_it_has_averaged():
    loop = Loop().script(germinate("mlp"), advance(target=0.7), prune())
    loop.epochs(2)
    averaged = AveragedModel(loop.model, **LATEST)
    train(loop, averaged, 1)
    averaged.avg_fn = lambda averaged, model, n: averaged.clone()  # it stays what it is
    before = answers(averaged, loop.x)
    loop.growth.follow(averaged)
    assert torch.equal(answers(averaged, loop.x), before)
    train(loop, averaged)
    assert torch.equal(answers(averaged, loop.x), before)
    loop.growth.step(loop.evaluate)
    assert names(averaged.module) == names(loop.model) == names(host_case("vector").model)


def test_other_averages_of_a_host_alike_are_left_alone():
    loop = Loop().script(germinate("mlp"))
    other = host_case("vector").model
    averaged = AveragedModel(other)
    loop.epochs(2)
    averaged.update_parameters(other)


def test_a_copy_made_in_the_middle_of_growth_stays_what_it_was():
    loop = Loop().script(germinate("mlp"), advance(target=0.7), retarget(target=1.0), prune())
    loop.epochs(2)
    wake(loop.growth.network.slots[0].seed)
    twin = copy.deepcopy(loop.model)
    before = answers(twin, loop.x)
    assert torch.equal(before, answers(loop.model, loop.x))
    loop.epochs(2)
    assert torch.equal(answers(twin, loop.x), before)
    assert torch.equal(answers(esper.grown_model(twin), loop.x), before)


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_contributions_are_those_of_the_average_where_it_is_evaluated(kind):
    """A seed is switched off in the network that ``evaluate`` runs, or nothing would ever contribute."""
    found = []
    for use_average in (False, True):
        loop = Loop(kind).script(germinate("mlp"), advance())
        averaged = AveragedModel(loop.model, **LATEST)
        loop.growth.follow(averaged)
        net = averaged if use_average else None

        def evaluate(loop=loop, net=net):
            return loop.evaluate(None if net is None else net.eval())

        for _ in range(4):
            train(loop, averaged)
            loop.growth.step(evaluate)
        found.append([step.contributions for step in loop.growth.history])
    assert found[0] == found[1]
    assert any(value for step in found[0] for value in step.values())


def test_a_run_with_an_average_resumes_after_growth_has_been_loaded():
    def fresh():
        loop = Loop().script(germinate("mlp"), advance(tempo="standard"))
        averaged = AveragedModel(loop.model)
        loop.growth.follow(averaged)
        return loop, averaged

    loop, averaged = fresh()
    for _ in range(3):
        train(loop, averaged)
        loop.growth.step(loop.evaluate)
    again, other = fresh()
    again.growth.load_state_dict(loop.growth.state_dict())
    again.model.load_state_dict(loop.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))  # which would share its tensors
    other.load_state_dict(averaged.state_dict())
    for one, its in ((loop, averaged), (again, other)):
        train(one, its)
        one.growth.step(one.evaluate)
    assert torch.equal(answers(averaged, loop.x), answers(other, loop.x))


def test_what_holds_no_copy_of_the_host_is_refused():
    loop = Loop()
    for stranger in (loop.model, nn.Linear(2, 2), host_case("image").model):
        with pytest.raises(ValueError, match="expected a copy of the Sequential that grows"):
            loop.growth.follow(stranger)


def test_remove_takes_the_seeds_out_of_the_average_too():
    loop = Loop().script(germinate("mlp"))
    averaged = AveragedModel(loop.model)
    loop.growth.follow(averaged)
    loop.epochs(1)
    loop.growth.remove()
    assert names(averaged.module) == names(loop.model) == names(host_case("vector").model)
    averaged.update_parameters(loop.model)
