"""Auditions: several candidates train in a slot, nobody feels them, and one of them grows as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from esper.actions import BLUEPRINT_NAMES, Decision
from esper.auditions import Auditions
from esper.lifecycle import Op, Stage
from esper.network.attribution import contributions, counterfactuals
from esper.network.growing_network import GrowingNetwork
from esper.network.placing import is_of_seed
from esper.network.slot import Slot
from network.hosts import WAIT, advance, germinate, host_case, same

KINDS = ["vector", "sequence", "causal", "image"]


class Run:
    """A host of two slots that trains, with auditions."""

    def __init__(self, kind: str = "vector", auditions: Auditions | None = Auditions(), **options: object) -> None:  # noqa: B008
        torch.manual_seed(1)
        case = host_case(kind, batch=12)
        self.x, self.model = case.x, case.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.network = GrowingNetwork(
            self.model, case.slots, self.x[:2], optimizer=self.optimizer, auditions=auditions, **options
        )
        self.network.step(WAIT)

    def train(self, batches: int = 2) -> Tensor:
        self.model.train()
        for _ in range(batches):
            self.optimizer.zero_grad()
            loss = self.model(self.x).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.01)
            self.optimizer.step()
        return loss.detach()

    def evaluate(self) -> tuple[float, float]:
        with torch.no_grad():
            loss = float(self.model.eval()(self.x).square().mean())
        return loss, 1 - loss

    def decide(self, decision: Decision = WAIT) -> None:
        """A decision, its interval of training, and what it shows."""
        self.network.step(decision)
        self.train()
        contributions(self.network, self.evaluate)

    @property
    def slot(self) -> Slot:
        return self.network.slots[0]

    def candidates(self, slot: int = 0) -> list[str]:
        nursery = self.network.slots[slot].nursery
        return [] if nursery is None else [BLUEPRINT_NAMES[b] for b in nursery.seeds]

    def host(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items() if not is_of_seed(name)}


def optimized(run: Run) -> set[int]:
    return {id(p) for group in run.optimizer.param_groups for p in group["params"]}


# ---------------------------------------------------------------------- nobody feels them


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_is_bit_for_bit_what_it_is_without_auditions(kind: str) -> None:
    with_auditions, without = Run(kind), Run(kind, auditions=None)
    for _ in range(4):
        with_auditions.decide()
        without.decide()
        assert same(with_auditions.host(), without.host())
    assert with_auditions.slot.life.auditioned


def test_every_candidate_learns_as_if_it_were_alone() -> None:
    together, alone = Run(), Run(auditions=Auditions(blueprints=("mlp",)))
    for run in (together, alone):
        run.decide()
    ours, theirs = (run.slot.nursery.seeds[BLUEPRINT_NAMES.index("mlp")] for run in (together, alone))
    assert len(together.candidates()) > 3
    assert same(ours.state_dict(), theirs.state_dict())
    before = copy.deepcopy(ours.state_dict())
    together.train()
    assert not same(ours.state_dict(), before)


# ---------------------------------------------------------------------- when, how long, and who


def test_an_audition_begins_after_the_hosts_own_interval_and_again_when_the_network_has_changed() -> None:
    run = Run()
    assert not run.candidates()
    run.decide()
    assert run.candidates(0)
    assert run.candidates(1)
    assert run.network.slots[1].life.auditions == 1
    run.decide(germinate("mlp"))
    assert (run.network.slots[1].life.auditions, run.candidates(0)) == (1, []), (
        "what trains in isolation changes nothing"
    )
    run.decide(advance())
    assert run.network.slots[1].life.auditions == 2
    run.decide()
    run.decide()
    run.decide()
    assert run.network.slots[1].life.auditions == 2


def test_after_each_decision_but_the_last_the_worse_half_goes() -> None:
    run = Run(auditions=Auditions(decisions=3))
    run.decide()
    numbers = []
    for _ in range(5):
        gains = {b: run.slot.life.auditioned[b].gain for b in run.slot.nursery.seeds}
        numbers.append(len(gains))
        before = set(gains)
        run.network.step(WAIT)
        after = set(run.slot.nursery.seeds)
        assert all(gains[stays] >= gains[goes] for stays in after for goes in before - after)
        run.train()
        contributions(run.network, run.evaluate)
    first = numbers[0]
    assert numbers == [first, -(-first // 2), -(-first // 4), -(-first // 4), -(-first // 4)]


def test_without_halving_all_stay_and_what_is_invited_is_affordable() -> None:
    run = Run(auditions=Auditions(halving=False, blueprints=("mlp", "norm", "mlp_large")), budget=300)
    run.decide()
    assert run.candidates() == ["norm", "mlp"]
    run.decide()
    assert run.candidates() == ["norm", "mlp"]
    assert run.network.added_params == 0


def test_those_that_wait_cost_nothing_and_stay_as_they_are() -> None:
    run = Run()
    for _ in range(3):
        run.decide()
    assert run.candidates()
    assert not run.slot.is_auditioning
    assert not [question for question in counterfactuals(run.network) if question.candidate is not None]
    waiting = copy.deepcopy(run.slot.nursery.state_dict())
    calls: list[str] = []
    for seed in run.slot.nursery.seeds.values():
        seed.register_forward_hook(lambda *_: calls.append("ran"))
    run.train()
    assert same(run.slot.nursery.state_dict(), waiting)
    assert not calls


def test_those_that_wait_stay_as_they_are_in_a_loop_that_keeps_zero_gradients() -> None:
    run = Run()
    zero_grad = run.optimizer.zero_grad
    run.optimizer.zero_grad = lambda: zero_grad(set_to_none=False)
    for _ in range(3):
        run.decide()
    assert run.candidates()
    assert not run.slot.is_auditioning
    waiting = copy.deepcopy(run.slot.nursery.state_dict())
    run.train(4)
    assert same(run.slot.nursery.state_dict(), waiting)


def test_those_that_wait_are_not_said_to_train_and_train_once_they_have_germinated() -> None:
    run = Run()
    for _ in range(3):
        run.decide()
    assert not run.slot.is_auditioning
    candidate = next(iter(run.slot.nursery.seeds.values()))
    assert not any(p.requires_grad for p in candidate.parameters())
    run.network.step(germinate(run.candidates()[0]))
    assert run.slot.seed is candidate
    weights = copy.deepcopy(candidate.state_dict())
    run.train()
    assert not same(candidate.state_dict(), weights)


def test_an_audition_of_no_decision_is_none() -> None:
    with pytest.raises(ValueError, match="an audition lasts 1 decision or more, got decisions=0"):
        Auditions(decisions=0)
    with pytest.raises(ValueError, match="expected some of the blueprints"):
        Run(auditions=Auditions(blueprints=("mpl",)))


# ---------------------------------------------------------------------- what it shows


def test_a_result_is_what_the_candidate_would_take_off_the_loss() -> None:
    run = Run()
    run.network.step(WAIT)
    run.train()
    before = copy.deepcopy(run.model.state_dict())
    contributions(run.network, run.evaluate)
    as_is, life = run.evaluate()[0], run.slot.life
    assert same(run.model.state_dict(), before)
    for blueprint, result in life.auditioned.items():
        twin = copy.deepcopy(run)
        twin.network.step(Decision(Op.GERMINATE, 0, blueprint))
        with twin.network.as_if_blended(0, 1.0):
            blended = twin.evaluate()[0]
        assert result.gain == pytest.approx(as_is - blended, abs=1e-6)
        assert (result.trained, result.age) == (1, 0)
    prospects = run.network.slot_readings()[0].prospects
    assert [p.audition for p in prospects] == [life.auditioned.get(b) for b in range(len(BLUEPRINT_NAMES))]
    assert [p.auditioning for p in prospects] == [b in run.slot.nursery.seeds for b in range(len(BLUEPRINT_NAMES))]


def test_results_grow_old_and_outlive_the_candidates() -> None:
    run = Run()
    run.decide()
    run.decide(germinate("mlp"))
    assert not run.candidates()
    assert {result.age for result in run.slot.life.auditioned.values()} == {1}


# ---------------------------------------------------------------------- growing


def test_what_has_auditioned_grows_as_it_is_with_its_state_in_the_optimizer() -> None:
    run = Run()
    run.decide()
    candidate = run.slot.nursery.seeds[BLUEPRINT_NAMES.index("mlp")]
    others = {id(p) for _, p in run.slot.named_parameters()} - {id(p) for p in candidate.parameters()}
    weights, state = copy.deepcopy(candidate.state_dict()), [run.optimizer.state[p] for p in candidate.parameters()]
    run.network.step(germinate("mlp"))
    assert run.slot.seed is candidate
    assert run.slot.stage is Stage.TRAINING
    assert same(candidate.state_dict(), weights)
    assert all(run.optimizer.state[p] is s for p, s in zip(candidate.parameters(), state, strict=True))
    assert not optimized(run) & others
    assert optimized(run) == {id(p) for p in run.model.parameters()}
    run.train()
    assert not same(candidate.state_dict(), weights)


@pytest.mark.parametrize("why", ["another style", "not among the candidates", "not finite"])
def test_otherwise_a_new_seed_is_planted(why: str) -> None:
    run = Run(auditions=Auditions(blueprints=("norm",) if why == "not among the candidates" else ("mlp",)))
    run.decide()
    candidate = next(iter(run.slot.nursery.seeds.values()))
    if why == "not finite":
        with torch.no_grad():
            next(candidate.parameters()).view(-1)[0] = torch.nan
    run.network.step(germinate("mlp", style="gate" if why == "another style" else "add"))
    assert run.slot.seed is not candidate
    assert run.slot.blueprint == "mlp"
    assert all(torch.isfinite(p).all() for p in run.slot.parameters())
    assert optimized(run) == {id(p) for p in run.model.parameters()}


def test_names_in_the_optimizer_are_those_of_the_model() -> None:
    case = host_case("vector", batch=12)
    optimizer = torch.optim.Adam(case.model.named_parameters())
    network = GrowingNetwork(case.model, case.slots, case.x[:2], optimizer=optimizer, auditions=Auditions())
    for decision in (WAIT, WAIT, germinate("mlp")):
        network.step(decision)
        names = {id(p): name for name, p in case.model.named_parameters()}
        for group in optimizer.param_groups:
            assert group["param_names"] == [names[id(p)] for p in group["params"]]


def test_removing_leaves_host_and_optimizer_as_they_were() -> None:
    run = Run()
    keys, parameters = set(run.host()), optimized(run)
    run.decide()
    assert set(run.model.state_dict()) > keys
    assert optimized(run) > parameters
    run.network.remove()
    assert set(run.model.state_dict()) == keys
    assert optimized(run) == parameters
    assert not any(module._forward_hooks for module in run.model.modules())


def test_the_plain_copy_holds_no_candidates() -> None:
    run = Run()
    run.decide()
    grown = run.network.grown_model()
    assert set(grown.state_dict()) == set(run.host())
    assert run.candidates()


# ---------------------------------------------------------------------- what goes wrong


def test_an_interrupt_while_candidates_join_the_optimizer_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("esper.network.optimizer.join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.network.step(WAIT)
    assert optimized(run) == {id(p) for p in run.model.parameters()}
    run.decide()
    assert run.candidates()


def test_a_state_in_the_middle_of_an_audition_goes_on_bit_for_bit() -> None:
    straight, resumed = Run(), Run()
    straight.decide()
    state = copy.deepcopy((straight.network.state_dict(), straight.model.state_dict(), straight.optimizer.state_dict()))
    resumed.network.load_state_dict(state[0])
    resumed.model.load_state_dict(state[1])
    resumed.optimizer.load_state_dict(state[2])
    for decision in (WAIT, germinate("mlp"), advance(), WAIT, germinate("norm", 1)):
        straight.decide(decision)
        resumed.decide(decision)
        assert same(resumed.model.state_dict(), straight.model.state_dict())
        assert resumed.network.slot_readings() == straight.network.slot_readings()
    assert resumed.network.slots[0].life == straight.network.slots[0].life
