"""torch.compile: a fresh compile when the structure changes, none when alpha moves or contributions are measured."""

from __future__ import annotations

import gc

import pytest
import torch

from growing import Loop
from network.hosts import WAIT, advance, germinate, prune

# torch.compile warns itself where it traces an autograd function
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture
def compiles():
    """Counts the graphs that are compiled."""
    count = []

    def backend(graph, example_inputs):
        count.append(graph)
        return graph

    gc.collect()  # runs that other tests gave up
    torch.compiler.reset()
    count.append(backend)
    yield count
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_structure_compiles_afresh_and_alpha_does_not(kind, compiles):
    backend = compiles.pop()
    plan = (germinate("mlp"), advance(tempo="slow"), *[WAIT] * 8, prune())
    reference = Loop(kind).script(*plan)
    expected = []
    for _ in range(13):
        reference.epochs(1)
        expected.append({name: value.clone() for name, value in reference.model.state_dict().items()})
    loop = Loop(kind).script(*plan)
    net = torch.compile(loop.model, backend=backend)
    counts = []
    for state in expected:
        before = len(compiles)
        loop.train(3, net)
        loop.growth.step(lambda: loop.evaluate(net))
        counts.append(len(compiles) - before)
        for name, value in loop.model.state_dict().items():
            torch.testing.assert_close(value, state[name], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(loop.growth.history, reference.growth.history, strict=True):
        assert ours.contributions == pytest.approx(theirs.contributions, abs=1e-5)
    # A decision acts in the next epoch: first germination, then the blend begins; the prune ends it at once. Each time
    # training and evaluation are compiled, but not the evaluations that measure contributions.
    assert counts == [2] * 3 + [0] * 8 + [2, 0]
    assert loop.growth.network.added_params == reference.growth.network.added_params


def test_a_compiled_model_can_be_given_and_grows_in_place(compiles):
    backend = compiles.pop()
    loop = Loop()
    loop.growth.remove()
    net = torch.compile(loop.model, backend=backend)
    import esper  # noqa: PLC0415

    growth = esper.Growth(net, loop.optimizer, slots=["1"], example_input=loop.x, policy="fixed")
    assert growth.model is loop.model
    loop.train(2, net)
    growth.step(loop.evaluate)
    seeds = [p.clone() for p in growth.network.seed_parameters()]
    loop.train(2, net)
    assert any(not torch.equal(a, b) for a, b in zip(seeds, growth.network.seed_parameters(), strict=True))


def test_a_run_given_up_leaves_other_models_compiled(compiles):
    backend = compiles.pop()
    given_up = Loop()  # its first batch is a measured one, which runs uncompiled
    net = torch.compile(torch.nn.Linear(2, 2), backend=backend)
    net(torch.ones(1, 2))
    assert not compiles
    del given_up
    gc.collect()
    net(torch.ones(1, 2))
    assert len(compiles) == 1
