"""The grown network as a plain module, exported, compiled and copied."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as prune_weights

from esper.actions import STYLES
from esper.lifecycle import Stage
from esper.network.growing_network import GrowingNetwork
from esper.network.grown import GrownModule
from network.hosts import FITTING, WAIT, HostCase, advance, fossilize, germinate, grow, host_case, prune, wake

EVERY = pytest.mark.parametrize(("name", "kind"), FITTING)


def grown_case(kind: str, name: str = "mlp", style: str = "add") -> tuple[HostCase, GrowingNetwork]:
    """A host with a blended seed in its first slot and an isolated one in its second."""
    case = host_case(kind)
    network = grow(case)
    network.step(germinate(name, 0, style))
    network.step(advance(0, target=0.7))
    network.step(germinate("mlp", 1))
    for slot in network.slots:
        wake(slot.seed)
    case.model.eval()
    return case, network


@EVERY
def test_the_grown_model_answers_like_the_network_and_exports(name: str, kind: str) -> None:
    case, network = grown_case(kind, name, STYLES[len(name) % 3])
    model = network.grown_model()
    expected = case.model(case.x)
    assert torch.equal(model(case.x), expected)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (case.x,), dynamic_shapes=({0: batch},))
    more = torch.cat([case.x, case.x])
    torch.testing.assert_close(program.module()(more), case.model(more))


def test_it_is_a_copy_without_seeds_in_training_and_the_network_goes_on() -> None:
    case, network = grown_case("image")
    model = network.grown_model()
    assert sum(isinstance(m, GrownModule) for m in model.modules()) == 1
    assert sum(p.numel() for p in model.parameters()) == network.host_params + network.slots[0].seed_params
    before = case.model(case.x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(case.model(case.x), before)
    assert len(case.model.conv1._forward_hooks) == 1, "the network's own hooks are back"
    network.step(prune(0))
    assert network.slots[0].stage is Stage.EMBARGOED


def test_a_network_without_seeds_gives_the_host() -> None:
    case = host_case("vector")
    model = grow(case).grown_model()
    assert list(model.state_dict()) == list(case.model.state_dict())
    assert torch.equal(model(case.x), case.model(case.x))


def test_a_seed_that_is_being_pruned_is_kept_as_it_is_now() -> None:
    case, network = grown_case("vector")
    network.step(prune(0, "slow"))
    assert 0 < network.slots[0].alpha < 0.7
    assert torch.equal(network.grown_model()(case.x), case.model(case.x))


def test_it_can_be_trained_on() -> None:
    case, network = grown_case("sequence")
    model = network.grown_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    model(case.x).pow(2).mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_it_grows_again() -> None:
    case, network = grown_case("sequence")
    model = network.grown_model()
    again = GrowingNetwork(model, ["second"], case.x)
    again.step(germinate("conv"))
    assert again.host_params == network.host_params + network.slots[0].seed_params


def test_nested_and_shared_slots() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model = nn.ModuleDict({"outer": nn.Sequential(inner, nn.Linear(4, 4)), "alias": inner, "again": inner})
    network = GrowingNetwork(_Calls(model), ["body.outer", "body.outer.0", "body.outer.0.0"], torch.randn(2, 4))
    for slot in range(3):
        network.step(germinate("mlp", slot))
        network.step(advance(slot))
        wake(network.slots[slot].seed)
    grown = network.grown_model()
    x = torch.randn(5, 4)
    torch.testing.assert_close(grown(x), network.model(x))
    assert grown.body["alias"] is grown.body["again"] is grown.body["outer"].host[0]


class _Calls(nn.Module):
    def __init__(self, body: nn.ModuleDict) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body["outer"](x)


def test_fused_kernels_do_not_pass_over_a_seed() -> None:
    """``TransformerEncoderLayer`` reads ``linear1.weight`` itself in evaluation, unless there are hooks."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 8)
    network = GrowingNetwork(nn.Sequential(model), ["0.linear2"], x)
    network.step(germinate("mlp"))
    network.step(advance())
    wake(network.slots[0].seed)
    training = network.model.train()(x)
    network.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), training)
        torch.testing.assert_close(network.grown_model()(x), training)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_what_the_last_forward_pass_left_in_modules_is_no_hindrance() -> None:
    """Old-style weight norm and pruning keep a computed weight, others an auxiliary loss: all hang on a graph."""

    class Balanced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.utils.weight_norm(nn.Linear(8, 8))
            self.register_buffer("mean", torch.zeros(8))
            self.losses: dict[str, list[Tensor]] = {}

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            self.mean = h.mean(0)
            self.losses = {"balance": [h.square().mean()]}
            return h

    pruned = nn.Linear(4, 8)
    prune_weights.random_unstructured(pruned, "weight", 0.5)
    model = nn.Sequential(pruned, nn.ReLU(), Balanced(), nn.Linear(8, 3))
    x = torch.randn(5, 4)
    network = GrowingNetwork(model, ["1", "2"], x)
    network.step(germinate("mlp"))
    network.step(advance())
    wake(network.slots[0].seed)
    model.train()(x).sum()
    grown = network.grown_model()
    torch.testing.assert_close(grown(x), model(x))
    grown(x).sum().backward()
    assert all(p.grad is not None for p in grown.parameters())


def test_transforms_of_functions_work_while_a_seed_trains() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    wake(network.slots[0].seed)
    parameters = {name: p.detach() for name, p in case.model.named_parameters() if "esper_seed" not in name}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(case.model, parameters, (x[None],)).pow(2).mean()

    gradients = torch.func.grad(loss)(parameters, case.x[0])
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, case.x)
    for name, gradient in gradients.items():
        torch.testing.assert_close(per_sample[name][0], gradient)


def test_a_grown_submodule_answers_for_the_one_inside() -> None:
    _, network = grown_case("vector")
    grown = network.grown_model()[1]
    assert isinstance(grown, GrownModule)
    assert grown.inplace is True
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = grown.nothing_like_it


def test_a_fossil_has_the_alpha_it_was_fossilized_at() -> None:
    case, network = grown_case("vector")
    network.step(fossilize(0))
    assert network.slots[0].alpha == 0.7
    assert torch.equal(network.grown_model()(case.x), case.model(case.x))


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 1.0])
def test_becoming_a_fossil_changes_no_bit_of_output_and_gradients(target: float) -> None:
    case = host_case("image")
    network = grow(case)
    for decision in (germinate("conv"), advance(target=target)):
        network.step(decision)
    wake(network.slots[0].seed)

    def bits() -> list[torch.Tensor]:
        loss = case.loss()
        return [loss, *torch.autograd.grad(loss, [*case.model.parameters(), *network.seed_parameters()])]

    before = bits()
    network.step(fossilize())
    seed = network.slots[0].seed
    assert seed is not None
    assert seed.whole is (target == 1)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(), strict=True))


def test_an_exported_network_runs_where_esper_is_not_installed(tmp_path: Path) -> None:
    case, network = grown_case("image", "attention")
    torch.export.save(torch.export.export(network.grown_model(), (case.x,)), tmp_path / "grown.pt2")
    torch.save((case.x, case.model(case.x)), tmp_path / "expected.pt")
    script = (
        "import sys; sys.modules['esper'] = None\n"
        "import torch\n"
        f"x, expected = torch.load(r'{tmp_path / 'expected.pt'}')\n"
        f"torch.testing.assert_close(torch.export.load(r'{tmp_path / 'grown.pt2'}').module()(x), expected)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ------------------------------------------------------------------------------------------- torch.compile


def test_alpha_moves_without_a_new_compilation() -> None:
    case = host_case("sequence")
    network = grow(case)
    compiled, count = _compiled(case.model)
    network.step(germinate("conv"))
    wake(network.slots[0].seed)
    network.step(advance(0, "slow"))
    case.model.eval()
    outputs = []
    for _ in range(6):
        torch.testing.assert_close(compiled(case.x), case.model(case.x))
        outputs.append(compiled(case.x))
        network.step(WAIT)
    assert not torch.allclose(outputs[0], outputs[-1])
    assert count == ["graph"], "one graph serves every alpha"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
@pytest.mark.parametrize("kind", ["vector", "sequence", "image"])
def test_a_compiled_host_follows_its_growth(kind: str) -> None:
    case = host_case(kind)
    network = grow(case)
    for decision in (None, germinate("mlp", 0), advance(0), fossilize(0), germinate("norm", 1), prune(1)):
        if decision is not None:
            network.step(decision)
        for slot in network.slots:
            if slot.seed is not None:
                torch.manual_seed(0)
                wake(slot.seed)
        compiled, _ = _compiled(case.model)
        eager = copy.deepcopy(case.model)
        for model in (compiled, eager):
            model.train()
            model.zero_grad()
        output = compiled(case.x)
        output.sum().backward()
        expected = eager(case.x)
        expected.sum().backward()
        torch.testing.assert_close(output, expected)
        for ours, theirs in zip(case.model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        assert all(p.grad is not None for slot in network.slots[:1] for p in slot.parameters())


def _compiled(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model compiled by a backend that counts its graphs and runs them as they are."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append("graph")
        return graph

    torch._dynamo.reset()  # else what other tests have compiled counts towards the limit of graphs
    return torch.compile(model, backend=backend), graphs  # type: ignore[return-value]
