"""A seed is a submodule of the host: whatever walks modules sees it, and no forward pass runs over it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from esper.actions import Decision
from esper.network import GrowingNetwork
from esper.network.isolation import IsolatedGradients
from esper.network.placing import find_places
from network.hosts import advance, germinate, grow, host_case, of_host, prune, same, wake

KINDS = pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])


@KINDS
def test_whatever_walks_the_model_sees_its_seeds(kind: str) -> None:
    case = host_case(kind)
    network = grow(case)
    network.step(germinate("mlp", 0))
    network.step(germinate("norm", 1))
    seeds = {id(p) for p in network.seed_parameters()}
    assert seeds <= {id(p) for p in case.model.parameters()}
    assert sum(p.numel() for p in case.model.parameters()) == network.host_params + network.added_params
    assert all(slot.seed in list(case.model.modules()) for slot in network.slots)
    names = dict(case.model.named_parameters())
    for slot in network.slots:
        for name, parameter in slot.named_parameters():
            assert names[name] is parameter
    case.model.double()
    assert {p.dtype for p in network.seed_parameters()} == {torch.float64}
    case.model.eval()
    assert not any(slot.seed.training for slot in network.slots)


@KINDS
def test_a_checkpoint_of_another_structure_is_refused(kind: str) -> None:
    case = host_case(kind)
    alone = copy.deepcopy(case.model.state_dict())
    network = grow(case)
    network.step(germinate("mlp", 0))
    with pytest.raises(RuntimeError, match=r"Missing key.*esper_seed"):
        case.model.load_state_dict(alone)
    grown = case.model.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*esper_seed"):
        host_case(kind).model.load_state_dict(grown)


@KINDS
def test_remove_leaves_the_host_as_it_was(kind: str) -> None:
    case = host_case(kind)
    optimizer = Adam(case.model.parameters())
    before = {name: list(module._modules) for name, module in case.model.named_modules()}
    network = grow(case, optimizer=optimizer)
    network.step(germinate("mlp", 0))
    network.step(germinate("norm", 1))
    network.step(prune(0))
    case.loss().backward()
    optimizer.step()
    network.remove()
    assert {name: list(module._modules) for name, module in case.model.named_modules()} == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(not p._post_accumulate_grad_hooks for p in case.model.parameters())
    assert all(not module._forward_hooks for module in case.model.modules())


class Shortcut(nn.Module):
    """A residual block whose shortcut is an empty Sequential, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.shortcut = nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


@pytest.mark.parametrize(
    ("model", "slot", "path"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "0", "0"),
        (nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)), "0", "0.1"),
        (Shortcut(), "shortcut", "body.1"),
        (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "0", "0"),
    ],
    ids=["leaf", "container", "empty container", "parametrized leaf"],
)
def test_the_place_is_a_leaf_so_that_no_forward_pass_runs_over_the_seed(model: nn.Module, slot: str, path: str) -> None:
    (place,) = find_places(model, [slot])
    assert place.path == path
    x = torch.randn(3, 4)
    before = model(x)
    network = GrowingNetwork(model, [slot], x)
    network.step(germinate("mlp"))
    wake(network.slots[0].seed)
    assert torch.equal(model(x), before)
    network.step(advance(0))
    assert not torch.allclose(model(x), before)


def test_two_slots_in_one_leaf_hold_their_seeds_apart() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    network = GrowingNetwork(model, ["0", "0.1"], torch.randn(2, 4))
    network.step(germinate("mlp", 0))
    network.step(germinate("lora", 1))
    assert {slot.place.prefix for slot in network.slots} == {"0.1.esper_seed", "0.1.esper_seed_2"}
    assert len(list(model.parameters())) == 4 + len(network.seed_parameters())


def test_a_model_of_containers_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="containers alone"):
        find_places(nn.Sequential(nn.Sequential()), ["0"])


def test_a_growing_model_can_be_copied() -> None:
    """As averages of weights and early stopping do."""
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp", 0))
    wake(network.slots[0].seed)
    network.step(advance(0))
    twin = copy.deepcopy(case.model)
    assert torch.equal(twin(case.x), case.model(case.x))
    with torch.no_grad():
        for p in network.seed_parameters():
            p.add_(1.0)
    assert not torch.allclose(twin(case.x), case.model(case.x)), "the copy has seeds of its own"
    assert torch.equal(pickle.loads(pickle.dumps(twin.state_dict()))["0.weight"], twin.state_dict()["0.weight"])


# ------------------------------------------------------------------------------------------- isolation in the loop


def host_trajectory(kind: str, decisions: list[Decision], train) -> dict[str, torch.Tensor]:
    """The host's weights after three steps of a loop, bit for bit."""
    torch.manual_seed(3)
    case = host_case(kind)
    optimizer = SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    network = grow(case, optimizer=optimizer)
    train(case, optimizer)
    for decision in decisions:
        network.step(decision)
    for _ in range(3):
        train(case, optimizer)
    assert not decisions or any(p.abs().sum() > 0 for p in network.seed_parameters())
    return {name: value.clone() for name, value in of_host(case.model.state_dict().items()).items()}


def clipped(case, optimizer) -> None:
    optimizer.zero_grad()
    (case.loss() * 100).backward()
    torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.5)
    optimizer.step()


def accumulated(case, optimizer) -> None:
    case.model.zero_grad()
    for _ in range(2):
        (case.loss() * 100).backward()
    torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.5)
    optimizer.step()


def scaled(case, optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer.zero_grad()
    scaler.scale(case.loss()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()


@KINDS
@pytest.mark.parametrize("train", [clipped, accumulated, scaled])
def test_clipping_over_all_parameters_does_not_feel_an_isolated_seed(kind: str, train) -> None:
    alone = host_trajectory(kind, [], train)
    beside = host_trajectory(kind, [germinate("mlp", 0), germinate("norm", 1)], train)
    assert same(alone, beside)


def seed_after(train, steps: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(3)
    case = host_case("vector")
    optimizer = SGD(case.model.parameters(), lr=0.1)
    network = grow(case, optimizer=optimizer)
    train(case, optimizer)
    network.step(germinate("mlp", 0))
    for _ in range(steps):
        train(case, optimizer)
    return [p.detach().clone() for p in network.seed_parameters()]


def plain(case, optimizer) -> None:
    optimizer.zero_grad()
    case.loss().backward()
    optimizer.step()


def in_two_halves(case, optimizer) -> None:
    optimizer.zero_grad()
    for _ in range(2):
        (case.loss() / 2).backward()
    optimizer.step()


def after_a_batch_that_was_dropped(case, optimizer) -> None:
    (case.loss() * 1000).backward()
    case.model.zero_grad()
    plain(case, optimizer)


def with_a_closure(case, optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = case.loss()
        loss.backward()
        return loss

    optimizer.step(closure)


def under_a_scaler(case, optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer.zero_grad()
    scaler.scale(case.loss()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("train", [in_two_halves, after_a_batch_that_was_dropped, with_a_closure, under_a_scaler])
def test_an_isolated_seed_learns_the_same_in_every_loop(train) -> None:
    for ours, theirs in zip(seed_after(train), seed_after(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_step_whose_gradients_overflowed_is_skipped_by_the_seed_too() -> None:
    def train(case, optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer.zero_grad()
        scaler.scale(case.loss() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        plain(case, optimizer)

    assert all(torch.isfinite(p).all() for p in seed_after(train))


def test_what_is_clipped_of_the_host_is_clipped_of_the_seed() -> None:
    """By the same factor, so that a batch that is clipped does not throw the seed."""
    torch.manual_seed(3)
    case = host_case("vector")
    optimizer = SGD(case.model.parameters(), lr=0.1)
    network = grow(case, optimizer=optimizer)
    plain(case, optimizer)
    network.step(germinate("mlp", 0))
    moved = []
    for limit in (1e9, 1e-3):
        before = [p.detach().clone() for p in network.seed_parameters()]
        optimizer.zero_grad()
        case.loss().backward()
        norm = torch.nn.utils.clip_grad_norm_(case.model.parameters(), limit)
        optimizer.step()
        pairs = zip(network.seed_parameters(), before, strict=True)
        moved.append(sum(float((p.detach() - b).square().sum()) for p, b in pairs))
    assert moved[1] ** 0.5 < 2 * moved[0] ** 0.5 * 1e-3 / float(norm)


def test_gradients_of_isolated_seeds_are_out_of_sight_between_backward_and_step() -> None:
    case = host_case("vector")
    optimizer = SGD(case.model.parameters(), lr=0.1)
    network = grow(case, optimizer=optimizer)
    network.step(germinate("mlp", 0))
    case.loss().backward()
    assert all(p.grad is None for p in network.seed_parameters())
    network.step(advance(0))
    assert any(p.grad is not None for p in network.seed_parameters()), "a seed that acts shows what it has learned from"


def test_holding_gradients_keeps_nothing_alive() -> None:
    case = host_case("vector")
    optimizer = SGD(case.model.parameters(), lr=0.1)
    held = IsolatedGradients(optimizer)
    held.hold(case.model.parameters())
    gone = weakref.ref(held)
    del held, optimizer
    gc.collect()
    assert gone() is None


# ------------------------------------------------------------------------------------------- dtypes


def test_seeds_have_the_dtype_of_the_hosts_parameters_under_autocast() -> None:
    case = host_case("image")
    optimizer = SGD(case.model.parameters(), lr=0.1)
    network = grow(case, optimizer=optimizer)

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = case.model(case.x).float().square().mean()
        loss.backward()
        optimizer.step()

    network.step(germinate("conv", 0))
    assert {p.dtype for p in network.seed_parameters()} == {torch.float32}
    before = [p.detach().clone() for p in network.seed_parameters()]
    for _ in range(3):
        train()
    network.step(advance(0))
    for _ in range(17):
        train()
    moved = [(a != b).float().mean() for a, b in zip(network.seed_parameters(), before, strict=True)]
    assert min(moved) > 0.99, "as many entries as the host's, not the few that bfloat16 can move"


def test_a_host_whose_layers_run_in_autocast_of_their_own_gets_seeds_in_its_parameters_dtype() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(self.layers(x))

    model, x = Casting(), torch.randn(6, 4)
    network = GrowingNetwork(model, ["layers"], x)
    assert network.slots[0].dtype == torch.bfloat16
    network.step(germinate("mlp"))
    network.step(advance(0))
    assert {p.dtype for p in network.seed_parameters()} == {torch.float32}
    assert model(x).dtype == torch.bfloat16
    model(x).float().sum().backward()


@KINDS
def test_a_model_can_change_its_dtype_after_germination(kind: str) -> None:
    case = host_case(kind)
    network = grow(case)
    network.step(germinate("mlp", 0))
    wake(network.slots[0].seed)
    network.step(advance(0))
    case.model.double()
    x = case.x.double() if case.x.is_floating_point() else case.x
    output = case.model(x)
    assert output.dtype == torch.float64
    output.sum().backward()
    network.step(germinate("norm", 1))
    assert {p.dtype for p in network.seed_parameters()} == {torch.float64}
