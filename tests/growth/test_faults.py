"""Whatever breaks in a run that grows is noticed by the end of the interval, taken back, and told."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from rich.console import Console
from torch import nn

import esper
from growing import Loop
from network.hosts import WAIT, advance, germinate, of_host, same

SEEDS = (germinate("mlp", 0), germinate("mlp", 1))
SETTLED = (*SEEDS, advance(1, "instant"), WAIT)
"""The first seed is in isolation, the second blended in."""
BLENDING = (*SEEDS, WAIT, advance(1, "slow"))


@torch.no_grad()
def write(tensor, value):
    tensor.view(-1)[0] = value


def host_weight(value):
    return lambda loop: write(loop.model.get_parameter("0.weight"), value)


def untouched_weight(loop):
    """A parameter that neither training nor validation reads."""
    loop.model.get_parameter("spare").data.fill_(math.nan)


def seed_weight(slot, value):
    return lambda loop: write(next(loop.growth.network.slots[slot].seed.parameters()), value)


def optimizer_state(loop):
    write(loop.optimizer.state[loop.model.get_parameter("0.weight")]["exp_avg_sq"], math.nan)


def gradient(loop):
    """One gradient of the next batch."""
    weight = loop.model.get_parameter("0.weight")

    def spoil(grad):
        handle.remove()
        return torch.full_like(grad, math.nan)

    handle = weight.register_hook(spoil)


def learning_rate(loop):
    loop.optimizer.param_groups[0]["lr"] = 1e12


def input_data(loop):
    """For this interval."""
    loop.x = loop.x.clone()
    write(loop.x, math.inf)


FAULTS = {
    "a weight of the host is no number": host_weight(math.nan),
    "a weight of the host is infinite": host_weight(-math.inf),
    "a weight of the host overflows": host_weight(3e38),
    "a weight that nothing reads is no number": untouched_weight,
    "a seed in isolation is no number": seed_weight(0, math.nan),
    "a seed in isolation is infinite": seed_weight(0, math.inf),
    "a blending seed is no number": seed_weight(1, math.nan),
    "a blending seed overflows": seed_weight(1, 3e38),
    "a settled seed is no number": seed_weight(1, math.nan),
    "a settled seed overflows": seed_weight(1, 3e38),
    "the state of the optimizer is no number": optimizer_state,
    "a gradient is no number": gradient,
    "the learning rate is huge": learning_rate,
    "the data are no numbers": input_data,
}
PRUNED = {0: ("a seed in isolation",), 1: ("a blending seed", "a settled seed overflows")}
"""Which seed is to blame, by slot."""


def state(loop):
    """The host, its optimizer's state of it, and the seeds."""
    seeds = [slot.seed.state_dict() if slot.seed else {} for slot in loop.growth.network.slots]
    weights = dict(of_host(loop.model.state_dict().items()))
    moments = [loop.optimizer.state[p] for p in loop.growth.network.host_parameters() if p in loop.optimizer.state]
    return copy.deepcopy([weights, moments, seeds])


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_taken_back_and_told_and_the_run_goes_on(kind):
    loop = Loop()
    loop.model.register_parameter("spare", torch.nn.Parameter(torch.zeros(2)))
    script = BLENDING if kind.startswith("a blending") else SETTLED
    loop.script(*script).epochs(len(script))
    good, (x, rate) = state(loop), (loop.x, loop.optimizer.param_groups[0]["lr"])
    FAULTS[kind](loop)
    loop.train()
    loop.x, loop.optimizer.param_groups[0]["lr"] = x, rate
    step = loop.growth.step(loop.evaluate)
    assert step.rolled_back
    assert math.isfinite(step.loss)
    pruned = [slot for slot, start in PRUNED.items() if kind.startswith(start)]
    assert [event.slot for event in step.events if event.kind == "pruned"] == [
        loop.growth.network.slot_names[slot] for slot in pruned
    ]
    weights, moments, seeds = state(loop)
    assert same(weights, good[0])
    assert same(moments, good[1])
    for slot in {0, 1} - set(pruned):
        assert same(seeds[slot], good[2][slot])
    loop.growth.summary(Console(file=(told := io.StringIO())))
    assert f"Rolled back by the governor: at step {len(script) + 1}" in told.getvalue()
    assert not any(step.rolled_back for step in loop.epochs(3))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e9])
def test_a_training_loss_that_diverges_is_enough(loss):
    loop = Loop()
    loop.growth.step(loop.evaluate, 1.1)
    loop.train()
    assert loop.growth.step(loop.evaluate, loss).rolled_back
    loop.train()
    assert not loop.growth.step(loop.evaluate, 1.0).rolled_back


def test_a_host_with_memory_that_nothing_has_filled_is_not_judged_by_it():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    host.register_parameter("spare", nn.Parameter(torch.full((2,), math.nan)))
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    growth = esper.Growth(host, optimizer, slots=["1"], example_input=torch.zeros(2, 4), policy="wait")
    assert not growth.step(lambda: (0.7, 0.5)).rolled_back
    nn.init.constant_(host[0].weight, math.nan)
    assert growth.step(lambda: (math.nan, 0.5) if host[0].weight.isnan().any() else (0.7, 0.5)).rolled_back
