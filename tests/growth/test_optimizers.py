"""Growth with anyone's optimizer: each either works, in every stage, or is refused at once by a sentence that helps."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as schedulers

import esper
from esper.network.seed import Seed, isolated_gradient
from growing import Loop
from network.hosts import WAIT, advance, fossilize, germinate, mlp, prune, same

PAGE = Path(__file__).resolve().parents[2] / "docs" / "grow_your_own_model.md"

Make = Callable[[list[Any]], optim.Optimizer]

WORKING: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, lr=0.05),
    "SGD, momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "SGD, nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD, foreach": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01),
    "Adam, amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam, foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "Adam, fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "Adam, rate in a tensor": lambda p: optim.Adam(p, lr=torch.tensor(0.01)),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adagrad, fused": lambda p: optim.Adagrad(p, lr=0.01, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01),
    "ASGD": lambda p: optim.ASGD(p, lr=0.01),
    "Rprop": lambda p: optim.Rprop(p, lr=0.001),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}

REFUSED: dict[str, tuple[Make, str]] = {
    "Muon": (optim.Muon, r"Muon cannot train what seeds bring: vectors.*2D.*AdamW or SGD"),
    "SparseAdam": (optim.SparseAdam, r"SparseAdam cannot train what seeds bring.*dense gradients.*Adam or SGD"),
    "LBFGS": (optim.LBFGS, r"LBFGS keeps one state for all parameters.*Adam or SGD"),
}


def looping(make: Make, *decisions: esper.Decision, **options: Any) -> Loop:
    """A loop that trains by ``make`` and takes ``decisions``, one a step."""
    return Loop(optimizer=lambda parameters, lr: make(list(parameters)), **options).script(*decisions)


def test_every_optimizer_of_torch_is_in_one_of_the_two_tables() -> None:
    theirs = {n for n, c in vars(optim).items() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    assert {name.partition(",")[0] for name in (*WORKING, *REFUSED)} == theirs - {"Optimizer"}


# ---------------------------------------------------------------------- those that work


LIFE = (germinate("mlp"), advance(), prune(), WAIT, WAIT, germinate("norm"), germinate("lora", 1, "gate"), advance(1))


def states_of(optimizer: optim.Optimizer, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return copy.deepcopy([dict(optimizer.state[p]) for p in parameters])


@pytest.mark.parametrize("name", WORKING)
def test_a_whole_life_leaves_the_hosts_state_alone_bit_for_bit(name: str) -> None:
    loop = looping(WORKING[name], *LIFE)
    host = list(loop.model.parameters())
    seen: set[str] = set()
    for _ in LIFE:
        loop.train()
        before = states_of(loop.optimizer, host)
        weights = [p.detach().clone() for p in loop.growth.network.seed_parameters()]
        loop.growth.step(loop.evaluate)
        assert same(states_of(loop.optimizer, host), before)
        seen |= set(loop.stages)
        assert all(bool(torch.isfinite(p).all()) for p in (*host, *weights))
    assert loop.stages == ["TRAINING", "HOLDING"]
    assert seen >= {"DORMANT", "TRAINING", "HOLDING", "EMBARGOED"}
    held = [p for group in loop.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(host) + len(loop.growth.network.seed_parameters())
    assert {id(p) for p in loop.optimizer.state} <= {id(p) for p in held}, "pruned parameters left with their state"


class ByHand(nn.Module):
    """The host of ``Loop("vector")`` with a seed in slot "1", written by hand: no hooks, no slots."""

    def __init__(self, host: nn.Module, seed: Seed) -> None:
        super().__init__()
        self.host, self.seed = copy.deepcopy((host, seed))

    def blended(self, x: Tensor) -> Tensor:
        h = self.host[1](self.host[0](x))
        h = h + self.seed.effect(h)
        return self.host[4](self.host[3](self.host[2](h)))

    def train_isolated(self, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> None:
        """The host learns alone; the seed learns from the gradient at its slot."""
        optimizer.zero_grad()
        h = self.host[1](self.host[0](x))
        h.retain_grad()
        nn.functional.cross_entropy(self.host[4](self.host[3](self.host[2](h.clone()))), y).backward()
        effect = self.seed.effect(h.detach())
        effect.backward(isolated_gradient(h.grad, h.detach(), effect.detach()))
        optimizer.step()

    def train_blended(self, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(self.blended(x), y).backward()
        optimizer.step()


def assert_same_weights(loop: Loop, twin: ByHand) -> None:
    network = loop.growth.network
    ours = [*network.host_parameters(), *network.seed_parameters()]
    for a, b in zip(ours, [*twin.host.parameters(), *twin.seed.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", WORKING)
def test_a_seed_is_trained_as_one_that_was_added_by_hand(name: str) -> None:
    """In isolation and blended in: the same weights as those of a network of one's own with ``add_param_group``."""
    make = WORKING[name]
    loop = looping(make, germinate("mlp"), advance(), governor=False, contributions=False)
    alone = copy.deepcopy(loop.model)
    optimizer = make(list(alone.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(loop.x), loop.y).backward()
        optimizer.step()
    loop.epochs(1)
    twin = ByHand(alone, loop.growth.network.slots[0].seed)
    own = make(list(twin.host.parameters()))
    own.load_state_dict(optimizer.state_dict())
    own.add_param_group({"params": list(twin.seed.parameters())})
    for _ in range(3):
        twin.train_isolated(own, loop.x, loop.y)
    loop.epochs(1)
    assert_same_weights(loop, twin)
    for _ in range(3):
        twin.train_blended(own, loop.x, loop.y)
    loop.train(3)
    assert_same_weights(loop, twin)


@pytest.mark.parametrize("name", WORKING)
def test_a_seed_may_be_there_before_the_optimizers_first_step(name: str) -> None:
    loop = looping(WORKING[name], germinate("mlp"), advance())
    loop.growth.step(loop.evaluate)
    before = [p.detach().clone() for p in loop.growth.network.seed_parameters()]
    loop.epochs(2)
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.growth.network.seed_parameters(), strict=True))


@pytest.mark.parametrize("name", WORKING)
def test_a_run_is_rolled_back_and_resumed(name: str) -> None:
    def fresh() -> Loop:
        return looping(WORKING[name], germinate("mlp"), advance())

    loop, resumed = fresh(), fresh()
    loop.epochs(3)
    resumed.growth.load_state_dict(copy.deepcopy(loop.growth.state_dict()))
    resumed.model.load_state_dict(loop.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    good = copy.deepcopy([loop.model.state_dict(), loop.optimizer.state_dict()["state"]])
    for run in (loop, resumed):
        run.train()
        with torch.no_grad():
            next(run.model.parameters()).fill_(float("nan"))
        assert run.growth.step(run.evaluate).rolled_back
    assert same([loop.model.state_dict(), loop.optimizer.state_dict()["state"]], good)
    for run in (loop, resumed):
        run.epochs(2)
    assert same(resumed.model.state_dict(), loop.model.state_dict())


def test_an_optimizer_without_a_learning_rate_of_its_own_works() -> None:
    transformers = pytest.importorskip("transformers")
    loop = looping(transformers.Adafactor, germinate("mlp"), advance(), fossilize())
    loop.epochs(4)
    assert loop.optimizer.param_groups[0]["lr"] is None
    assert loop.growth._run.learning_rate is None
    assert loop.stages[0] == "FOSSILIZED"


# ---------------------------------------------------------------------- those that are refused


class GroupCounter(optim.Optimizer):
    """Schedule-free in short: an average whose weights are counted once for a whole group."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["weight_sum"] += group["lr"] ** 2
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                z.sub_(p.grad, alpha=group["lr"] * group["k"])
                p.lerp_(z, 1 / group["k"])


class Sharpness(optim.Optimizer):
    """Sharpness-aware minimisation: steps uphill, and back down by the optimizer inside."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "rho": 0.05})
        self.base_optimizer = optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                self.state[p]["uphill"] = group["rho"] * p.grad
                p.add_(self.state[p]["uphill"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p].pop("uphill", torch.zeros(())))
        self.base_optimizer.step()


class Prepared(optim.Optimizer):
    """Makes its state when it is built, as many that are written by hand do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["sum"].add_(p.grad), alpha=group["lr"])


class Noisy(optim.Adam):
    """Langevin dynamics in short; a subclass that calls the step of its parent."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=1e-4)
        return super().step(closure)


OWN: dict[str, tuple[Make, str]] = {
    "GroupCounter": (GroupCounter, r"GroupCounter keeps k, weight_sum for a whole param group.*Adam or SGD"),
    "Sharpness": (Sharpness, r"Sharpness hands .* to another optimizer, SGD.*give Growth.*optimizer\.base_optimizer"),
    "Prepared": (Prepared, r"Prepared cannot train what seeds bring.*without any state yet.*KeyError: 'sum'"),
}


@pytest.mark.parametrize("name", [*REFUSED, *OWN])
def test_an_optimizer_that_cannot_take_in_parameters_is_refused_at_once(name: str) -> None:
    make, message = (REFUSED | OWN)[name]
    model, x = mlp(), torch.randn(4, 4)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = make(matrices if make is optim.Muon else list(model.parameters()))
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(ValueError, match=message):
        esper.Growth(model, optimizer, slots=["1"], example_input=x)
    assert same([model.state_dict(), optimizer.state_dict()], before)
    assert all(p.grad is None for p in model.parameters())
    esper.Growth(model, optim.SGD(model.parameters(), lr=0.1), slots=["1"], example_input=x)


def test_trying_an_optimizer_out_moves_nothing() -> None:
    """Neither weights, nor state, hooks, random numbers, a scheduler or a warning."""
    model = mlp()
    optimizer = Noisy(model.parameters(), lr=0.1)
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=9)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("step"))
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]])
    made, random = list(calls), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        esper.Growth(model, optimizer, slots=["1"], example_input=torch.zeros(2, 4))
    assert calls == made
    assert same([model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]], before)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_subclass_that_calls_its_parents_step_makes_one_step() -> None:
    optim.Adam(mlp().parameters())  # from the first instance on, a class calls hooks in its step
    loop = looping(Noisy, germinate("mlp"))
    loop.epochs(1)
    loop.train(2)
    slot = loop.growth.network.slots[0]
    before = slot.statistics.slot_gradient_rms
    assert slot._measuring
    loop.train(1)
    assert slot.statistics.slot_gradient_rms is not before
    assert loop.growth.state_dict()["probe"]["steps"] == 3


def test_the_optimizer_inside_of_sharpness_aware_minimisation_works() -> None:
    torch.manual_seed(1)
    model, x, y = mlp(), torch.randn(24, 4), torch.randint(0, 3, (24,))
    optimizer = Sharpness(model.parameters())
    plan = [germinate("mlp"), advance(), fossilize(), *[WAIT] * 9]
    growth = esper.Growth(
        model, optimizer.base_optimizer, slots=["1"], example_input=x, policy=lambda run: plan[run.decision]
    )

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    for _ in range(4):
        for _ in range(3):
            for half in (optimizer.first_step, optimizer.second_step):
                optimizer.zero_grad()
                loss().backward()
                half()
        before = [p.detach().clone() for p in growth.network.seed_parameters()]
        growth.step(lambda: (float(loss()), 0.5))
    assert growth.network.slots[0].stage.name == "FOSSILIZED"
    assert {id(p) for p in growth.network.seed_parameters()} <= {id(p) for p in optimizer.state}
    loss().backward()
    optimizer.first_step()
    loss().backward()
    optimizer.second_step()
    assert any(not torch.equal(a, b) for a, b in zip(before, growth.network.seed_parameters(), strict=True))


# ---------------------------------------------------------------------- what the user does with it later


def test_a_group_that_the_user_adds_later_is_no_hindrance() -> None:
    loop = looping(WORKING["Adam"], germinate("mlp"), advance())
    loop.epochs(2)
    unfrozen = nn.Parameter(torch.ones(3))
    loop.optimizer.add_param_group({"params": [unfrozen], "lr": 1e-4})
    loop.train()
    unfrozen.grad = torch.ones(3)
    loop.optimizer.step()
    with torch.no_grad():
        next(loop.model.parameters()).fill_(float("nan"))
    assert loop.growth.step(loop.evaluate).rolled_back
    assert [group["lr"] for group in loop.optimizer.param_groups] == [1e-2, 1e-4]
    assert loop.optimizer.param_groups[1]["params"][0] is unfrozen
    assert not any(step.rolled_back for step in loop.epochs(2))


@pytest.mark.parametrize("fused", [False, True])
def test_training_with_another_optimizer_is_noticed(fused: bool) -> None:
    loop = looping(WORKING["Adam"], germinate("mlp"))
    loop.epochs(2)
    loop.optimizer = optim.Adam(loop.model.parameters(), lr=1e-3, fused=fused)
    loop.train()
    before = loop.growth.state_dict()["network"]
    with pytest.raises(
        RuntimeError, match=r"the Adam that Growth was given has made no step.*seeds do not learn.*build"
    ):
        loop.growth.step(loop.evaluate)
    assert same(loop.growth.state_dict()["network"], before)
    loop.optimizer = loop.growth.optimizer
    loop.epochs(1)


def test_a_step_without_any_training_is_allowed_and_so_is_one_after_resuming() -> None:
    loop, resumed = (looping(WORKING["Adam"], germinate("mlp")) for _ in range(2))
    loop.epochs(2)
    loop.growth.step(loop.evaluate)
    resumed.growth.load_state_dict(loop.growth.state_dict())
    resumed.model.load_state_dict(loop.model.state_dict())
    resumed.optimizer.load_state_dict(loop.optimizer.state_dict())
    resumed.growth.step(resumed.evaluate)


def test_a_second_optimizer_is_said_not_to_be_rolled_back() -> None:
    torch.manual_seed(1)
    model, x, y = mlp(), torch.randn(24, 4), torch.randint(0, 3, (24,))
    body, head = optim.Adam(model[:4].parameters()), optim.SGD(model[4].parameters(), lr=0.1)
    growth = esper.Growth(model, body, slots=["1"], example_input=x, policy="wait")

    def epoch() -> None:
        for optimizer in (body, head):
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for optimizer in (body, head):
            optimizer.step()
        growth.step(lambda: (1.0, 0.5))

    with pytest.warns(
        UserWarning, match=r"trains 2 of the host's parameters \(4.weight, 4.bias\).*not the state of any"
    ):
        epoch()
    epoch()  # said once
    with pytest.raises(ValueError, match="got list; Growth takes one optimizer"):
        esper.Growth(mlp(), [body, head], slots=["1"], example_input=x)


def test_the_optimizers_state_before_that_of_the_growth_says_what_to_do() -> None:
    loop, resumed = (looping(WORKING["Adam"], germinate("mlp")) for _ in range(2))
    loop.epochs(2)
    with pytest.raises(ValueError, match=r"holds \[6\], those of seeds included; load the growth's state .* first"):
        resumed.optimizer.load_state_dict(loop.optimizer.state_dict())
    resumed.growth.load_state_dict(loop.growth.state_dict())
    resumed.optimizer.load_state_dict(loop.optimizer.state_dict())
    resumed.growth.remove()
    assert not resumed.optimizer._optimizer_load_state_dict_pre_hooks


# ---------------------------------------------------------------------- param groups


def test_the_user_may_name_the_group_of_each_parameter() -> None:
    asked: set[tuple[str, int, str]] = set()

    def choose(name: str, parameter: nn.Parameter, slot: str) -> int:
        asked.add((name, parameter.dim(), slot))
        return int(name.endswith("weight"))

    def make(parameters: list[nn.Parameter]) -> optim.Optimizer:
        return optim.AdamW([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 1e-4}])

    loop = looping(make, germinate("mlp"), param_group=choose)
    assert ("3.esper_seed.blueprint.bias", 1, "3") in asked, "asked about everything that may come"
    loop.epochs(1)
    sizes = [[tuple(p.shape) for p in group["params"][3:]] for group in loop.optimizer.param_groups]
    assert sizes == [[(16,), (8,)], [(16, 8), (8, 16)]]


@pytest.mark.parametrize("answer", [2, -1, None, "decay", False, 0.0])
def test_a_group_that_does_not_exist_is_refused_before_anything_grows(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"param_group\('1\.esper_seed\..*one of the optimizer's 1 param group"):
        looping(WORKING["Adam"], param_group=lambda name, parameter, slot: answer)
    with pytest.raises(ValueError, match="param_group is a function of"):
        looping(WORKING["Adam"], param_group=1)


# ---------------------------------------------------------------------- schedulers


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, [0.1, 0.2], total_steps=40),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 40),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.1, 3), schedulers.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step\\(\\)`:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_through_growth_pruning_and_a_rollback(name: str) -> None:
    def make(parameters: list[nn.Parameter]) -> optim.Optimizer:
        vectors = [p for p in parameters if p.dim() < 2]
        matrices = [p for p in parameters if p.dim() == 2]
        return optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "lr": 1e-3}])

    rates: list[list[list[float]]] = []
    for decisions in ((), (*LIFE[:3], WAIT, *LIFE[3:])):  # the rollback takes one decision back
        loop = looping(make, *decisions)
        scheduler = SCHEDULERS[name](loop.optimizer)
        rates.append([])
        for epoch in range(10):
            loop.train()
            if epoch == 4:
                loop.model[0].weight.data.fill_(float("nan"))
            assert loop.growth.step(loop.evaluate).rolled_back == (epoch == 4)
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            rates[-1].append([group["lr"] for group in loop.optimizer.param_groups])
    assert rates[0] == rates[1]
    assert len({tuple(r) for r in rates[0]}) > 1
    for group, wanted in zip(loop.optimizer.param_groups, ({2}, {0, 1}), strict=True):
        assert {p.dim() for p in group["params"]} <= wanted, "vectors stay with vectors, matrices with matrices"
    assert loop.growth.network.seed_parameters()


# ---------------------------------------------------------------------- scaled losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_gradients_are_read_as_they_are_where_a_scaler_scales_the_loss(fused: bool, clip: bool) -> None:
    readings = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=2.0**16)):
        loop = looping(lambda p: optim.SGD(p, lr=0.05, fused=fused), germinate("mlp"), advance())
        for _ in range(4):
            for _ in range(3):
                loop.optimizer.zero_grad()
                scaler.scale(loop.loss()).backward()
                if clip:
                    scaler.unscale_(loop.optimizer)
                    held = [p for group in loop.optimizer.param_groups for p in group["params"]]
                    nn.utils.clip_grad_norm_(held, 1e-3)
                scaler.step(loop.optimizer)
                scaler.update()
            loop.growth.step(loop.evaluate)
        network = loop.growth.network
        slots = [(s.statistics.slot_gradient_rms, s.statistics.seed_gradient_rms) for s in network.slots]
        readings.append([network.host_gradient_rms, slots[0][0], slots[0][1], slots[1][0]])
    for plain, scaled in zip(*readings, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=0)


def test_a_batch_whose_step_the_scaler_skips_is_read_unscaled_too() -> None:
    loop = looping(lambda p: optim.SGD(p, lr=0.05))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def train(broken: bool = False) -> None:
        loop.optimizer.zero_grad()
        scaler.scale(loop.loss()).backward()
        if broken:
            loop.model[4].bias.grad.fill_(float("inf"))
        scaler.step(loop.optimizer)
        scaler.update()

    for _ in range(3):
        train()
    loop.growth.step(loop.evaluate)
    slot = loop.growth.network.slots[0]
    before = slot.statistics.slot_gradient_rms
    for broken in (False, False, True):
        train(broken)
    loop.growth.step(loop.evaluate)
    after = slot.statistics.slot_gradient_rms
    assert after is not before
    torch.testing.assert_close(after, before, rtol=0.5, atol=0)


# ---------------------------------------------------------------------- the page


def test_the_page_names_what_works_and_what_is_refused() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page[page.index("## Optimizers and param groups") :].partition("\n## ")[0]
    works, refused = (
        re.search(rf"\| {row} \|([^|]*)\|", section).group(1)  # type: ignore[union-attr]
        for row in ("works", "refused")
    )
    assert set(re.findall(r"`(\w+)`", works)) == {name.partition(",")[0] for name in WORKING}
    assert set(re.findall(r"`(\w+)`", refused)) == set(REFUSED)
