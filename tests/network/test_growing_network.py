"""GrowingNetwork: masks, steps, books and readings."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.actions import BLUEPRINT_NAMES, HEADS, STYLES, Decision
from esper.lifecycle import EMBARGO_DECISIONS, IllegalMoveError, Op, Stage
from esper.network.blueprints import count_parameters
from esper.network.growing_network import BudgetError, GrowingNetwork
from esper.observation import RunReading, encode
from network.hosts import (
    WAIT,
    HostCase,
    advance,
    fossilize,
    germinate,
    grow,
    host_case,
    mlp,
    of_host,
    prune,
    random_decision,
    retarget,
    same,
    wake,
)


def everything(network: GrowingNetwork) -> dict[str, Any]:
    """All that a step could change, and which objects it consists of."""
    optimizer = network.optimizer
    return {
        "state": network.state_dict(),
        "seeds": [id(slot.seed) for slot in network.slots],
        "hooks": {name: list(m._forward_hooks) for name, m in network.model.named_modules()},
        "groups": [] if optimizer is None else [[id(p) for p in g["params"]] for g in optimizer.param_groups],
        "moments": [] if optimizer is None else sorted(id(p) for p in optimizer.state),
        "rng": torch.get_rng_state(),
    }


def train(case: HostCase, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    case.model.train()
    case.loss().backward()
    optimizer.step()


# ------------------------------------------------------------------------------------------- masks and steps


decisions = st.builds(
    Decision,
    op=st.sampled_from(Op),
    slot=st.integers(0, 2),
    blueprint=st.integers(0, 12),
    style=st.integers(0, 2),
    tempo=st.integers(0, 3),
    curve=st.integers(0, 2),
    alpha_target=st.integers(0, 2),
)


def allowed_by(masks: dict[str, np.ndarray], decision: Decision) -> bool:
    """Whether the masks allow a decision, read as a policy reads them: head by head, parents first."""
    op = decision.op
    if not masks["op"][op]:
        return False
    if op is Op.WAIT:
        return True
    if decision.slot >= masks["slot"].shape[1] or not masks["slot"][op, decision.slot]:
        return False
    return op is not Op.GERMINATE or bool(masks["blueprint"][decision.slot, decision.blueprint])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["vector", "sequence", "image"]),
    st.sampled_from([None, 0, 300, 1500]),
    st.lists(decisions, max_size=25),
)
def test_masks_are_exactly_what_step_accepts(kind: str, budget: int | None, episode: list[Decision]) -> None:
    case = host_case(kind)
    optimizer = torch.optim.Adam(case.model.parameters())
    network = grow(case, optimizer=optimizer, budget=budget, blueprints=[n for n in BLUEPRINT_NAMES if n != "lora"])
    for decision in episode:
        masks = network.masks()
        before = everything(network)
        if allowed_by(masks, decision):
            network.step(decision)
        else:
            with pytest.raises(ValueError, match=r"."):
                network.step(decision)
            assert same(everything(network), before), "a refused decision has changed something"
        assert budget is None or network.added_params <= budget
        assert network.added_params == sum(p.numel() for p in network.seed_parameters())
        for slot in network.slots:
            assert (slot.seed is not None) == (slot.stage not in (Stage.DORMANT, Stage.EMBARGOED))
            assert 0 <= slot.alpha <= 1
            assert slot.seed is None or slot.seed.alpha.item() == pytest.approx(slot.alpha)


def accepts(network: GrowingNetwork, decision: Decision) -> bool:
    try:
        network.check(decision)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("seed", range(3))
def test_every_combination_of_op_slot_and_blueprint_is_masked_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    few = seed == 0  # the cheapest fits one slot only
    network = grow(
        host_case("sequence"), budget=500 if few else 700, blueprints=["mlp", "conv"] if few else BLUEPRINT_NAMES
    )
    seen = set()
    for _ in range(80):
        masks = network.masks()
        accepted = np.zeros((len(Op), 2, 13), dtype=bool)
        for op, slot, blueprint in np.ndindex(accepted.shape):
            accepted[op, slot, blueprint] = accepts(network, Decision(Op(op), slot, blueprint))
        np.testing.assert_array_equal(masks["blueprint"], accepted[Op.GERMINATE])
        np.testing.assert_array_equal(masks["slot"][1:], accepted[1:].any(2), "a slot is offered iff it accepts the op")
        np.testing.assert_array_equal(masks["op"], accepted.any((1, 2)), "an op is offered iff some slot accepts it")
        assert not masks["slot"][Op.WAIT].any(), "WAIT addresses no slot"
        seen |= {slot.stage for slot in network.slots}
        decision = random_decision(rng, masks)
        network.step(WAIT if decision.op is Op.FOSSILIZE and rng.random() < 0.7 else decision)
    assert seen >= set(Stage) - {Stage.FOSSILIZED}


def test_shapes_of_the_masks_follow_the_heads_table() -> None:
    masks = grow(host_case("image")).masks()
    assert {name: mask.shape for name, mask in masks.items()} == {
        "op": (6,),
        "slot": (6, 2),
        "blueprint": (2, 13),
        **{head.name: (head.num_choices,) for head in HEADS[3:]},
    }
    assert all(mask.dtype == np.bool_ for mask in masks.values())


def test_a_refused_germination_names_the_reason() -> None:
    case = host_case("vector")
    network = grow(case, budget=100, blueprints=["lora", "mlp"])
    with pytest.raises(ValueError, match=r"'conv' does not fit .*expected one of lora, mlp"):
        network.step(germinate("conv"))
    with pytest.raises(ValueError, match="'norm' is not among those allowed"):
        network.step(germinate("norm"))
    with pytest.raises(BudgetError, match=r"needs 296 parameters in slot '1' .* only 100 are left"):
        network.step(germinate("mlp"))
    with pytest.raises(ValueError, match="slot must be from 0 to 1, got 2"):
        network.step(germinate("lora", slot=2))
    with pytest.raises(IllegalMoveError, match="FOSSILIZE was asked of slot '1', which is DORMANT"):
        network.step(fossilize())


def test_the_budget_counts_the_dearest_style_so_that_styles_are_always_free() -> None:
    case = host_case("vector")
    dearest = count_parameters("mlp", case_spec(case), "gate")
    assert not grow(host_case("vector"), budget=dearest - 1).masks()["blueprint"][0, BLUEPRINT_NAMES.index("mlp")]
    for style in STYLES:
        network = grow(host_case("vector"), budget=dearest)
        network.step(germinate("mlp", style=style))
        assert network.added_params <= dearest


def case_spec(case: HostCase) -> Any:
    return grow(case).slots[0].spec


# ------------------------------------------------------------------------------------------- a seed's life


def test_a_life_from_germination_to_fossil() -> None:
    network = grow(host_case("sequence"))
    slot = network.slots[1]

    def step(decision: Decision) -> list[tuple[str, str]]:
        return [(event.kind, event.stage.name) for event in network.step(decision)]

    assert step(germinate("conv", 1, "gate")) == [("germinated", "TRAINING")]
    assert (slot.blueprint, slot.style, slot.alpha) == ("conv", "gate", 0.0)
    assert step(WAIT) == []
    assert step(advance(1, tempo="standard", target=0.7)) == [("stage", "BLENDING")]
    assert slot.alpha == pytest.approx(0.7 / 4)
    assert step(WAIT) == step(WAIT) == []
    assert step(WAIT) == [("stage", "HOLDING")]
    assert slot.alpha == 0.7
    assert step(retarget(1, tempo="fast", target=1.0)) == [("stage", "BLENDING")]
    assert slot.alpha == pytest.approx(0.85)
    assert step(WAIT) == [("stage", "HOLDING")]
    assert step(fossilize(1)) == [("fossilized", "FOSSILIZED")]
    assert slot.alpha == 1.0
    assert network.slots[0].stage is Stage.DORMANT
    assert not network.masks()["slot"][:, 1].any()


@pytest.mark.parametrize("decisions", [1, 2, 4, 8])
def test_a_ramp_of_n_decisions_ends_with_the_nth_step(decisions: int) -> None:
    tempo = {1: "instant", 2: "fast", 4: "standard", 8: "slow"}[decisions]
    network = grow(host_case("vector"))
    network.step(germinate("mlp"))
    stages = [network.step(advance(tempo=tempo)) and network.slots[0].stage]
    while network.slots[0].stage is Stage.BLENDING:
        network.step(WAIT)
        stages.append(network.slots[0].stage)
    assert stages == [Stage.BLENDING] * (decisions - 1) + [Stage.HOLDING]


def test_pruning_ramps_down_cools_down_and_opens_the_slot_again() -> None:
    network = grow(host_case("vector"))
    slot = network.slots[0]
    network.step(germinate("mlp"))
    network.step(advance())
    events = network.step(prune(tempo="fast"))
    assert [(e.kind, e.stage) for e in events] == [("pruning", Stage.BLENDING)]
    assert slot.alpha == pytest.approx(0.5)
    assert not network.masks()["slot"][:, 0].any(), "nothing is legal while alpha ramps down"
    (event,) = network.step(WAIT)
    assert (event.kind, event.stage, event.blueprint) == ("pruned", Stage.EMBARGOED, "mlp")
    assert slot.seed is None
    for left in range(EMBARGO_DECISIONS, 0, -1):
        assert slot.stage is Stage.EMBARGOED
        assert slot.life.embargo_left == left
        assert not network.masks()["slot"][Op.GERMINATE, 0]
        network.step(WAIT)
    assert slot.stage is Stage.DORMANT
    assert network.masks()["slot"][Op.GERMINATE, 0]
    assert (slot.life.germinations, slot.life.prunes) == (1, 1)


def test_a_seed_in_training_is_pruned_at_once() -> None:
    network = grow(host_case("vector"))
    network.step(germinate("mlp"))
    assert [e.kind for e in network.step(prune(tempo="slow"))] == ["pruned"]
    assert network.slots[0].stage is Stage.EMBARGOED
    assert network.added_params == 0


def test_a_blend_can_be_pruned_half_way() -> None:
    network = grow(host_case("vector"))
    network.step(germinate("mlp"))
    network.step(advance(tempo="slow"))
    network.step(prune(tempo="instant"))
    assert network.slots[0].stage is Stage.EMBARGOED


@pytest.mark.parametrize(
    "life",
    [[], [WAIT, WAIT], [advance(tempo="slow")], [advance(), WAIT]],
    ids=["just germinated", "in training", "in mid-blend", "on probation"],
)
@pytest.mark.parametrize("evicted", [False, True], ids=["pruned", "evicted"])
def test_the_cool_down_is_of_one_length_whatever_was_pruned(life: list[Decision], evicted: bool) -> None:
    network = grow(host_case("vector"))
    for decision in [germinate("mlp"), *life]:
        network.step(decision)
    if evicted:
        network.evict(0)
    else:
        network.step(prune(tempo="instant"))
    for _ in range(EMBARGO_DECISIONS):
        assert network.slots[0].stage is Stage.EMBARGOED
        assert not network.masks()["slot"][Op.GERMINATE, 0]
        network.step(WAIT)
    assert network.masks()["slot"][Op.GERMINATE, 0]


def test_evicting_is_for_undecided_seeds_only() -> None:
    network = grow(host_case("vector"))
    network.step(germinate("mlp"))
    network.step(advance(tempo="slow"))
    assert network.evict(0).kind == "pruned"
    assert network.slots[0].stage is Stage.EMBARGOED
    with pytest.raises(IllegalMoveError):
        network.evict(0)


def test_times_in_the_books() -> None:
    network = grow(host_case("vector"))
    network.step(germinate("mlp"))
    ages = []
    for decision in (WAIT, advance(tempo="fast"), WAIT, WAIT):
        network.step(decision)
        reading = network.slot_readings()[0]
        ages.append((reading.stage.name, reading.decisions_in_stage, reading.decisions_since_germination))
    assert ages == [("TRAINING", 1, 1), ("BLENDING", 0, 2), ("HOLDING", 0, 3), ("HOLDING", 1, 4)]
    assert network.decision == 5


def test_seeds_depend_on_the_network_seed_slot_and_count_only() -> None:
    def weights(seed: int, slot: int, earlier: int) -> torch.Tensor:
        network = grow(host_case("vector"), seed=seed)
        for _ in range(earlier):
            for decision in (germinate("norm", slot), prune(slot), WAIT, WAIT):
                network.step(decision)
        torch.manual_seed(np.random.default_rng().integers(1000))
        network.step(germinate("mlp", slot))
        return torch.cat([p.detach().flatten() for p in network.seed_parameters()])

    first = weights(0, 0, 0)
    assert torch.equal(weights(0, 0, 0), first)
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert not torch.equal(weights(*other), first)


# ------------------------------------------------------------------------------------------- the host stays itself


@pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])
def test_building_changes_nothing_about_the_host(kind: str) -> None:
    case = host_case(kind)
    case.model.train()
    case.model.get_submodule(case.slots[0]).eval()
    flags = {name: m.training for name, m in case.model.named_modules()}
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    rng = torch.get_rng_state()
    network = grow(case)
    assert same(dict(case.model.state_dict()), before)
    assert {name: m.training for name, m in case.model.named_modules()} == flags
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(not m._forward_hooks for m in case.model.modules()), "dormant slots have no hooks"
    network.step(germinate("mlp", 0))
    network.step(advance(0))
    assert list(of_host(case.model.state_dict().items())) == list(before), "the host's own keys stay as they are"


def test_a_slot_that_is_empty_again_has_no_hook() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    assert len(case.model[1]._forward_hooks) == 1
    network.step(prune())
    assert not case.model[1]._forward_hooks


def test_growing_twice_is_refused_until_the_first_is_removed() -> None:
    case = host_case("vector")
    optimizer = torch.optim.Adam(case.model.parameters())
    output = case.model(case.x)
    network = grow(case, optimizer=optimizer)
    with pytest.raises(ValueError, match="growing already; call remove"):
        grow(case)
    with pytest.raises(ValueError, match="growing already"):
        GrowingNetwork(nn.Sequential(case.model), ["0"], case.x)
    network.step(germinate("mlp"))
    network.step(advance())
    wake(network.slots[0].seed)
    train(case, optimizer)
    network.remove()
    assert len(optimizer.param_groups[0]["params"]) == len(optimizer.state) == 6
    assert not case.model[1]._forward_hooks
    assert case.model(case.x).shape == output.shape
    grow(case)


def test_a_deep_copy_of_the_host_lives_on_alone() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    network.step(advance())
    wake(network.slots[0].seed)
    twin = copy.deepcopy(case.model)
    expected = case.model(case.x)
    torch.testing.assert_close(twin(case.x), expected)
    network.step(prune())
    torch.testing.assert_close(twin(case.x), expected)


def test_bad_arguments_are_explained() -> None:
    model = mlp()
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="budget must be a number of parameters of 0 or more"):
        GrowingNetwork(model, ["1"], x, budget=-1)
    with pytest.raises(ValueError, match="expected some of the blueprints"):
        GrowingNetwork(model, ["1"], x, blueprints=["linear"])
    with pytest.raises(ValueError, match="expected some of the blueprints"):
        GrowingNetwork(model, ["1"], x, blueprints=[])
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        GrowingNetwork(model, ["1"], x, seed=-1)
    GrowingNetwork(model, ["1"], x)  # none of the failures has left the model marked


def test_a_slot_that_changes_shape_is_noticed() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).sum(-1)

    model = Fickle()
    network = GrowingNetwork(model, ["body"], torch.randn(2, 4))
    network.step(germinate("mlp"))
    model(torch.randn(7, 4))
    with pytest.raises(ValueError, match=r"slot 'body' carried vectors of 4 channels .* now outputs \(2, 5\)"):
        model(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"now outputs \(2, 3, 4\)"):
        model(torch.randn(2, 3, 4))


# ------------------------------------------------------------------------------------------- as if, measuring


def test_as_if_contexts_act_and_leave_no_trace() -> None:
    case = host_case("vector")
    alone = copy.deepcopy(case.model).eval()
    network = grow(case)
    network.step(germinate("mlp"))
    wake(network.slots[0].seed)
    case.model.eval()
    host_output = alone(case.x)
    assert torch.equal(case.model(case.x), host_output), "a TRAINING seed is skipped in evaluation"
    with network.as_if_blended(0):
        blended = case.model(case.x)
    assert not torch.allclose(blended, host_output)
    assert torch.equal(case.model(case.x), host_output)
    network.step(advance(target=0.5))
    half = case.model(case.x)
    with network.as_if_blended(0, 1.0):
        torch.testing.assert_close(case.model(case.x), blended)
    with network.switched_off(0):
        assert torch.equal(case.model(case.x), host_output)
    with pytest.raises(RuntimeError, match="stop"), network.as_if_blended(0, 1.0):
        raise RuntimeError("stop")
    assert torch.equal(case.model(case.x), half)
    assert network.slots[0].seed.alpha.item() == 0.5


@pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])
def test_measured_statistics_are_right(kind: str) -> None:
    case = host_case(kind)
    network = grow(case)
    network.step(germinate("mlp", 0))
    wake(network.slots[0].seed)
    network.step(advance(0, target=0.5))
    seen: dict[str, torch.Tensor] = {}

    def keep(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen["h"] = output.detach().clone()
        output = output.clone()
        output.register_hook(lambda grad: seen.update(grad=grad))
        return output

    with network.measure():
        handle = case.model.get_submodule(case.slots[1]).register_forward_hook(keep)
        case.loss().backward()
    handle.remove()

    def rms(tensors: list[torch.Tensor]) -> float:
        return torch.cat([t.flatten() for t in tensors]).pow(2).mean().sqrt().item()

    first, second = network.slot_readings()
    assert first.seed_gradient_rms == pytest.approx(rms([p.grad for p in network.seed_parameters()]), rel=1e-4)
    assert first.host_gradient_rms == second.host_gradient_rms
    host_gradients = [p.grad for p in of_host(case.model.named_parameters()).values() if p.grad is not None]
    assert first.host_gradient_rms == pytest.approx(rms(host_gradients), rel=1e-4)
    assert first.seed_output_rms > 0
    assert second.seed_gradient_rms is None
    assert second.seed_output_rms is None
    assert second.activation_rms == pytest.approx(rms([seen["h"]]), rel=1e-4)
    assert second.slot_gradient_rms == pytest.approx(rms([seen["grad"]]), rel=1e-4)
    assert first.slot_gradient_rms is not None
    assert first.slot_gradient_rms > 0


def test_the_gradient_of_a_dormant_slot_is_measured_where_the_host_overwrites_it() -> None:
    case = host_case("sequence")  # relu_ on the output of a Linear on sequences, which is a view
    network = grow(case)
    with network.measure():
        case.loss().backward()
    assert all(reading.slot_gradient_rms is not None for reading in network.slot_readings())


def test_measuring_leaves_no_hooks_and_no_difference() -> None:
    case = host_case("image")
    alone = copy.deepcopy(case.model)
    network = grow(case)
    with network.measure():
        measured = case.model(case.x)
        measured.pow(2).mean().backward()
    assert all(not m._forward_hooks for m in case.model.modules())
    assert torch.equal(measured, alone(case.x))
    readings = network.slot_readings()[0]
    with network.measure(False):
        case.model(10 * case.x)
    assert network.slot_readings()[0] == readings


def test_readings_encode_at_every_stage() -> None:
    case = host_case("sequence")
    optimizer = torch.optim.Adam(case.model.parameters())
    network = grow(case, optimizer=optimizer, budget=2000)
    rng = np.random.default_rng(0)
    for decision in range(30):
        network.step(random_decision(rng, network.masks()))
        with network.measure():
            train(case, optimizer)
        run = RunReading(
            decision=decision,
            horizon=30,
            scores=[0.5],
            train_losses=[1.0],
            val_losses=[1.0],
            host_params=network.host_params,
            added_params=network.added_params,
            rent=0.02,
            budget=2000,
            slots=network.slot_readings(),
        )
        features, blueprints = encode(run)
        assert np.isfinite(features).all()
        assert list(blueprints) == [slot.life.blueprint for slot in network.slots]


def test_affordable_share_counts_what_fits_and_can_be_paid() -> None:
    network = grow(host_case("vector"), budget=70)
    # of 13: norm (16 + 16 for a gate), lora (16 + 16); squeeze_excite costs 42 + 16, lora_large 64 + 16
    assert network.slot_readings()[0].affordable_share == pytest.approx(3 / 13)
    assert [r.depth for r in network.slot_readings()] == [0.0, 1.0]
