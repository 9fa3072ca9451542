"""A model and an optimizer that accelerate has prepared: the forward pass is wrapped in autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import esper
from network.hosts import WAIT, advance, germinate, host_case

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def accelerator():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_prepared_model_grows(kind, accelerator):
    case = host_case(kind, batch=8)
    y = torch.arange(8) % 3
    model, optimizer = accelerator.prepare(case.model, torch.optim.Adam(case.model.parameters(), lr=0.01))
    plan = [germinate("mlp"), advance(target=0.5), WAIT, WAIT, WAIT]
    growth = esper.Growth(
        model,
        optimizer.optimizer,
        slots=case.slots,
        example_input=case.x[:2],
        policy=lambda run: plan[run.decision],
        contributions=False,
    )
    before: list[torch.Tensor] = []
    for _ in range(3):
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(case.x), y)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        growth.step(lambda: (0.5, 0.5))
        before = before or [p.detach().clone() for p in growth.network.seed_parameters()]
    assert {p.dtype for p in growth.network.seed_parameters()} == {torch.float32}
    moved = [float((a != b).float().mean()) for a, b in zip(growth.network.seed_parameters(), before, strict=True)]
    assert min(moved) > 0.8, moved  # a channel of the host may be dead
    model.eval()
    with torch.no_grad():
        expected = model(case.x)
        for twin in (growth.grown_model().eval(), copy.deepcopy(model)):
            assert torch.equal(twin(case.x), expected)
            for parameter in twin.parameters():
                parameter.zero_()
            assert not torch.equal(twin(case.x), expected), "a copy runs itself, not what it was copied from"
        assert torch.equal(model(case.x), expected)


def test_the_optimizer_inside_is_asked_for(accelerator):
    case = host_case("vector")
    model, optimizer = accelerator.prepare(case.model, torch.optim.SGD(case.model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"optimizer\.optimizer"):
        esper.Growth(model, optimizer, slots=case.slots, example_input=case.x)
