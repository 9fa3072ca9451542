"""Parameters that come and go: the optimizer keeps its state, schedulers go on undisturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim import lr_scheduler as schedulers

from esper.network import optimizer as surgery
from esper.network.growing_network import GrowingNetwork
from network.hosts import WAIT, HostCase, advance, fossilize, germinate, grow, host_case, prune, same

OPTIMIZERS: dict[str, Callable[[list], Optimizer]] = {
    "SGD": lambda groups: SGD(groups, lr=0.05, momentum=0.9),
    "Adam": lambda groups: Adam(groups, lr=0.01),
    "AdamW": lambda groups: AdamW(groups, lr=0.01),
    "RMSprop": lambda groups: RMSprop(groups, lr=0.001),
}


def two_groups(model: nn.Module) -> list[dict]:
    """The last layer in a group of its own."""
    last = list(model[-1].parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in last)]
    return [{"params": rest}, {"params": last, "weight_decay": 0.1}]


def train(case: HostCase, optimizer: Optimizer) -> float:
    optimizer.zero_grad()
    loss = case.loss()
    loss.backward()
    optimizer.step()
    return loss.item()


def state_of(optimizer: Optimizer, parameters: list[nn.Parameter]) -> list[dict[str, Tensor]]:
    return [{k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in parameters]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_hosts_state_survives_a_whole_life(name: str) -> None:
    """In each isolated decision the host is updated exactly as a host that never grew."""
    case = host_case("vector")
    alone = HostCase(copy.deepcopy(case.model), case.slots, case.x)
    optimizer, twin = (OPTIMIZERS[name](two_groups(c.model)) for c in (case, alone))
    network = grow(case, optimizer=optimizer)
    own = list(case.model.parameters())
    for decision in (None, germinate("mlp", 0), germinate("lora", 1, "gate"), prune(0), prune(1)):
        if decision is not None:
            before = state_of(optimizer, own)
            network.step(decision)
            for old, new in zip(before, state_of(optimizer, own), strict=True):
                assert old.keys() == new.keys()
                assert all(torch.equal(old[k], new[k]) for k in old)
        for _ in range(3):
            assert train(case, optimizer) == train(alone, twin)
    for ours, theirs in zip(own, alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(optimizer.state) == len(own), "pruned parameters left with their state"
    assert [len(g["params"]) for g in optimizer.param_groups] == [4, 2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_seeds_keep_their_own_state_until_they_are_fossils(name: str) -> None:
    case = host_case("vector")
    optimizer = OPTIMIZERS[name]([{"params": list(case.model.parameters())}])
    network = grow(case, optimizer=optimizer)
    network.step(germinate("mlp", 0, "gate"))
    seeds = network.seed_parameters()
    for decision in (advance(0, "fast"), WAIT, fossilize(0), germinate("norm", 1)):
        train(case, optimizer)
        before = state_of(optimizer, seeds)
        weights = [p.detach().clone() for p in seeds]
        network.step(decision)
        assert all(a is b for a, b in zip(seeds, network.seed_parameters(), strict=False))
        for old, new in zip(before, state_of(optimizer, seeds), strict=True):
            assert all(torch.equal(old[k], new[k]) for k in old)
        train(case, optimizer)
        assert any(not torch.equal(a, b) for a, b in zip(weights, seeds, strict=True)), "the seed does not learn"


def test_new_parameters_join_the_group_of_their_slots_module() -> None:
    case = host_case("vector")
    optimizer = AdamW(two_groups(case.model), lr=0.01)
    network = GrowingNetwork(case.model, ["4", "1", "0"], case.x, optimizer=optimizer)
    for slot, (group, size) in enumerate([(1, 2), (0, 4), (0, 6)]):
        assert len(optimizer.param_groups[group]["params"]) == size
        network.step(germinate("lora", slot))
        assert len(optimizer.param_groups[group]["params"]) == size + 2
        added = optimizer.param_groups[group]["params"][-2:]
        assert all(a is b for a, b in zip(added, network.slots[slot].parameters(), strict=True))
    assert len(optimizer.param_groups) == 2


class Finetuned(nn.Module):
    """A pretrained body and a new head; slots: body.1 (between its layers), head.0 and head.2 (activations)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
        self.embed = nn.Embedding(5, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


def split(model: Finetuned) -> AdamW:
    """Body (0, 1) and head (2, 3) at their own rates, each split into decayed matrices and the rest."""
    groups = []
    for part, rate in (([model.embed, model.body], 1e-6), ([model.head], 1e-2)):
        own = [p for module in part for p in module.parameters()]
        tables = [model.embed.weight]
        matrices = [p for p in own if p.dim() == 2 and p is not tables[0]]
        rest = [p for p in own if all(p is not m for m in matrices)]
        groups += [{"params": matrices, "lr": rate}, {"params": rest, "lr": rate, "weight_decay": 0.0}]
    return AdamW(groups)


@pytest.mark.parametrize(("slot", "matrices", "vectors"), [("body.1", 0, 1), ("head.0", 2, 3), ("head.2", 2, 3)])
@pytest.mark.parametrize("blueprint", ["mlp", "norm", "lora"])
def test_each_parameter_joins_its_like_in_the_nearest_part(
    slot: str, matrices: int, vectors: int, blueprint: str
) -> None:
    """A head at 1e-2 gives its seeds 1e-2, and no bias or norm is decayed; whatever the order of definition."""
    model = Finetuned()
    optimizer = split(model)
    network = GrowingNetwork(model, [slot], torch.randint(0, 5, (4,)), optimizer=optimizer)
    network.step(germinate(blueprint, style="gate"))
    homes = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for parameter in network.seed_parameters():
        assert homes[id(parameter)] == (vectors if parameter.dim() < 2 else matrices)


def test_beside_an_embedding_a_seed_is_no_table() -> None:
    """Embeddings are often kept from decaying; what stands behind one is not one."""
    model = Finetuned()
    optimizer = split(model)
    network = GrowingNetwork(model, ["embed"], torch.randint(0, 5, (4,)), optimizer=optimizer)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    network.step(germinate("mlp"))
    assert [len(group["params"]) for group in optimizer.param_groups] == [sizes[0] + 2, sizes[1] + 2, *sizes[2:]]


class Filtered(nn.Module):
    """Sequences [N, L, 8] through a convolution and a linear map; slot: mix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(8, 8, 3, padding=1)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.stem(x.transpose(1, 2)).transpose(1, 2))


def test_kernels_of_convolutions_stay_beside_kernels() -> None:
    """As where one group is for matrices alone."""
    model = Filtered()
    own = list(model.parameters())
    optimizer = AdamW(
        [{"params": [p for p in own if p.dim() == 2]}, {"params": [p for p in own if p.dim() != 2]}], lr=0.01
    )
    network = GrowingNetwork(model, ["mix"], torch.randn(4, 6, 8), optimizer=optimizer)
    network.step(germinate("conv", style="gate"))
    assert any(p.dim() == 3 for p in network.seed_parameters())
    assert {p.dim() for p in optimizer.param_groups[0]["params"]} == {2}
    assert {p.dim() for p in optimizer.param_groups[1]["params"]} == {1, 3}


def test_the_order_of_execution_is_found_by_running() -> None:
    """Also of modules that never run themselves, because another reads their weights."""
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    with surgery.forward_order(model) as order:
        x = torch.zeros(3, 8)
        h, _ = model[0](model[1](x), x, x)
    assert list(order) == ["1", "0", "0.out_proj", ""]
    assert not any(m._forward_hooks for m in model.modules())
    assert surgery.nearest(order, "0")[:2] == [model[0], model[0].out_proj]
    assert h.shape == (3, 8)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_germination_that_is_interrupted_leaves_nothing(
    error: type[BaseException], after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = host_case("vector")
    optimizer = Adam(case.model.parameters(), lr=0.01)
    network = grow(case, optimizer=optimizer)
    train(case, optimizer)
    insert, calls = surgery._insert, []

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) > after:
            raise error
        insert(*args)  # type: ignore[arg-type]

    before = copy.deepcopy([network.state_dict(), optimizer.state_dict()])
    monkeypatch.setattr(surgery, "_insert", interrupted)
    with pytest.raises(error):
        network.step(germinate("mlp"))
    monkeypatch.undo()
    assert same([network.state_dict(), optimizer.state_dict()], before)
    assert not any(m._forward_hooks for m in case.model.modules())
    network.step(germinate("mlp"))
    train(case, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == 10


def test_named_parameters_keep_their_names() -> None:
    case = host_case("vector")
    optimizer = Adam(case.model.named_parameters(), lr=0.01)
    network = grow(case, optimizer=optimizer)
    network.step(germinate("lora", 0))
    network.step(germinate("norm", 1))
    names = optimizer.param_groups[0]["param_names"]
    assert names[-4:-2] == ["1.esper_seed.blueprint.down.weight", "1.esper_seed.blueprint.up.weight"]
    assert names[-2:] == ["3.esper_seed.blueprint.weight", "3.esper_seed.blueprint.bias"]
    network.step(prune(0))
    assert len(names) == len(optimizer.param_groups[0]["params"]) == 8
    assert names[-2:] == ["3.esper_seed.blueprint.weight", "3.esper_seed.blueprint.bias"]
    state = network.state_dict()
    network.load_state_dict(state)
    assert optimizer.param_groups[0]["param_names"] == names


SCHEDULERS: dict[str, Callable[[Optimizer], schedulers.LRScheduler]] = {
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=40),
    "LambdaLR": lambda o: schedulers.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=40),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.1, 5), schedulers.ExponentialLR(o, 0.9)], [5]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step\\(\\)`:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_undisturbed(name: str) -> None:
    case = host_case("vector")
    alone = HostCase(copy.deepcopy(case.model), case.slots, case.x)
    optimizer, twin = (AdamW(two_groups(c.model), lr=0.01) for c in (case, alone))
    scheduler, twin_scheduler = SCHEDULERS[name](optimizer), SCHEDULERS[name](twin)
    network = grow(case, optimizer=optimizer)
    life = {3: germinate("mlp", 0), 9: advance(0, "fast"), 15: fossilize(0), 18: germinate("norm", 1), 25: prune(1)}
    for step in range(30):
        if step in life:
            network.step(life[step])
        elif step > 9:
            network.step(WAIT)
        train(case, optimizer)
        train(alone, twin)
        for s in (scheduler, twin_scheduler):
            s.step(*([1.0] if isinstance(s, schedulers.ReduceLROnPlateau) else []))
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in twin.param_groups]


def test_without_an_optimizer_the_caller_looks_after_the_parameters() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    optimizer = SGD(case.model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in network.seed_parameters()]
    train(case, optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(before, network.seed_parameters(), strict=True))
