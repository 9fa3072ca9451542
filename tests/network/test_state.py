"""A stopped run goes on bit for bit, whatever stage its seeds are in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from esper.actions import Decision
from esper.lifecycle import Stage
from esper.network.growing_network import GrowingNetwork
from network.hosts import (
    WAIT,
    HostCase,
    advance,
    fossilize,
    germinate,
    grow,
    host_case,
    mlp,
    prune,
    random_decision,
    same,
)


class Run:
    """A training run with everything that has state; data come from a generator of its own."""

    def __init__(self, kind: str, groups: int = 2) -> None:
        torch.manual_seed(7)
        self.case = host_case(kind)
        parameters = list(self.case.model.parameters())
        cut = len(parameters) // groups
        named = [{"params": parameters[:cut]}, {"params": parameters[cut:]}][:groups]
        self.optimizer: Optimizer = AdamW(named, lr=0.01)
        self.scheduler = OneCycleLR(self.optimizer, 0.01, total_steps=1000)
        self.network = grow(self.case, optimizer=self.optimizer, budget=5000, seed=3)
        self.data = torch.Generator().manual_seed(1)

    def interval(self, decision: Decision) -> float:
        self.network.step(decision)
        for _ in range(2):
            with self.network.measure():
                self.optimizer.zero_grad()
                noise = torch.randn(3, generator=self.data)
                loss = (self.case.model.train()(self.case.x) - noise[0]).pow(2).mean()
                loss.backward()
            self.optimizer.step()
            self.scheduler.step()
        return loss.item()

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        state = {
            "growth": self.network.state_dict(),
            "model": self.case.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "data": self.data.get_state(),
        }
        torch.save(state, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.network.load_state_dict(state["growth"])
        self.case.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.data.set_state(state["data"])

    def everything(self) -> dict[str, Any]:
        return {
            "growth": self.network.state_dict(),
            "model": self.case.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


LIFE = [
    germinate("mlp", 1, "gate"),
    germinate("norm", 0),
    WAIT,
    advance(1, "standard", 0.7, "cosine"),
    advance(0),
    WAIT,
    prune(0, "fast"),
    WAIT,
    WAIT,
    fossilize(1),
    germinate("lora_large", 0, "multiply"),
    WAIT,
]


@pytest.mark.parametrize("kind", ["vector", "image"])
@pytest.mark.parametrize("stop", range(len(LIFE) + 1))
def test_a_run_stopped_at_any_decision_goes_on_bit_for_bit(stop: int, kind: str) -> None:
    straight, first = Run(kind), Run(kind)
    for decision in LIFE[:stop]:
        straight.interval(decision)
        first.interval(decision)
    second = Run(kind)
    second.load(first.save())
    assert same(second.everything(), straight.everything())
    for decision in [*LIFE[stop:], WAIT]:
        assert second.interval(decision) == straight.interval(decision)
        assert same(second.everything(), straight.everything())
        assert second.network.slot_readings() == straight.network.slot_readings()


def test_that_life_stops_at_every_stage() -> None:
    run, seen = Run("vector"), set()
    for decision in LIFE:
        run.interval(decision)
        seen |= {(slot.stage, slot.life.pruning) for slot in run.network.slots}
    assert {stage for stage, _ in seen} == set(Stage)
    assert (Stage.BLENDING, True) in seen


@pytest.mark.parametrize("seed", range(4))
def test_a_state_loads_over_any_other_state(seed: int) -> None:
    """Also where the optimizer holds other seeds by now, in another order."""
    rng = np.random.default_rng(seed)
    run = Run("sequence")
    for _ in range(12):
        run.interval(random_decision(rng, run.network.masks()))
    saved, expected = run.save(), run.everything()
    expected = torch.load(_pickled(expected), weights_only=True)
    for _ in range(9):
        run.interval(random_decision(rng, run.network.masks()))
    run.load(saved)
    assert same(run.everything(), expected)
    positions = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert len(positions) == len(set(positions))
    assert {id(p) for p in run.network.seed_parameters()} <= set(positions)
    assert len(run.optimizer.state) <= len(positions)


def test_seeds_return_to_their_places_among_parameters_that_came_later() -> None:
    def run_with_extra(grow_first: bool) -> tuple[Run, torch.nn.Parameter]:
        run, extra = Run("vector", groups=1), torch.nn.Parameter(torch.ones(3))
        if grow_first:
            run.interval(germinate("mlp", 1))
        run.optimizer.param_groups[0]["params"].append(extra)
        return run, extra

    first, _ = run_with_extra(grow_first=True)
    first.interval(germinate("norm", 0))
    second, extra = run_with_extra(grow_first=False)
    second.load(first.save())
    assert [p is extra for p in second.optimizer.param_groups[0]["params"]].index(True) == 6 + 4
    for _ in range(2):
        assert second.interval(WAIT) == first.interval(WAIT)


def _pickled(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_state_shares_nothing_with_the_run() -> None:
    run = Run("vector")
    run.interval(germinate("mlp"))
    state = run.network.state_dict()
    kept = {k: v.clone() for k, v in state["slots"]["1"]["weights"].items()}
    run.interval(WAIT)
    assert same(kept, state["slots"]["1"]["weights"])


def test_states_that_do_not_belong_here_are_refused_and_change_nothing() -> None:
    run = Run("vector")
    run.interval(germinate("mlp"))
    before = torch.load(_pickled(run.everything()), weights_only=True)
    own = run.network.state_dict()
    foreign = Run("image").network.state_dict()
    smaller = GrowingNetwork(mlp(), ["1"], torch.randn(1, 4)).state_dict()
    without = {**own, "slots": {n: {k: v for k, v in s.items() if k != "positions"} for n, s in own["slots"].items()}}
    wider = {**own, "slots": {n: {**s, "spec": {**s["spec"], "channels": 9}} for n, s in own["slots"].items()}}
    far = {**own, "slots": {n: {**s, "positions": [(3, 0)] * 4} for n, s in own["slots"].items()}}
    for state, message in [
        ({"step": 3}, "expected the state of a GrowingNetwork"),
        ({**own, "format": 99}, "got 99"),
        (foreign, "of another host"),
        (smaller, "of another host"),
        (wider, "of another host"),
        ({**own, "host_params": 5}, "of another host"),
        (without, "saved without an optimizer"),
        (far, "build it with the same groups"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.network.load_state_dict(state)
        assert same(run.everything(), before)
    run.interval(WAIT)


def test_a_network_without_an_optimizer_resumes_too() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    network.step(advance(0, "slow"))
    twin_case = HostCase(mlp(), case.slots, case.x)
    twin = grow(twin_case)
    twin.load_state_dict(network.state_dict())
    twin_case.model.load_state_dict(case.model.state_dict())
    assert same(twin.state_dict(), network.state_dict())
    assert torch.equal(twin_case.model(case.x), case.model(case.x))
    optimizer = SGD(twin_case.model.parameters(), lr=0.1)
    optimizer.zero_grad()
