"""What every blueprint promises, in every kind of slot that it fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.actions import BLUEPRINT_NAMES, STYLES
from esper.network.blueprints import BLUEPRINTS, SlotSpec, build_blueprint, build_style, count_flops, count_parameters
from esper.network.seed import Seed, plant
from network.hosts import FITTING, SPECS, germinate, grow, host_case, wake

EVERY = pytest.mark.parametrize(("name", "kind"), FITTING)
EVERY_STYLE = pytest.mark.parametrize("style", STYLES)


def test_the_table_is_that_of_the_action_space() -> None:
    assert tuple(BLUEPRINTS) == BLUEPRINT_NAMES
    assert len(BLUEPRINTS) == 13


def test_which_blueprints_fit_which_kind() -> None:
    pointwise = {"norm", "lora", "lora_large", "mlp", "mlp_large", "gated_mlp"}
    mixing = {"depthwise", "conv", "conv_large", "bottleneck", "dilated", "attention"}
    fitting = {kind: {n for n, k in FITTING if k == kind} for kind in SPECS}
    assert fitting["vector"] == pointwise | {"squeeze_excite"}
    assert fitting["sequence"] == fitting["image"] == pointwise | mixing | {"squeeze_excite"}
    assert fitting["causal"] == pointwise | mixing


def test_attention_is_not_offered_where_it_would_cost_too_much() -> None:
    attention = BLUEPRINTS["attention"]
    assert attention.fits(SlotSpec("image", 8, (32, 32)))
    assert not attention.fits(SlotSpec("image", 8, (32, 33)))
    assert not attention.fits(SlotSpec("sequence", 8, (1,)))


@EVERY
def test_delta_has_the_shape_of_h_and_is_zero_at_birth(name: str, kind: str) -> None:
    spec = SPECS[kind]
    h = torch.randn(spec.shape(3))
    delta = build_blueprint(name, spec)(h)
    assert delta.shape == h.shape
    assert torch.all(delta == 0)


@EVERY_STYLE
@EVERY
def test_a_new_seed_is_the_identity_at_any_alpha(name: str, kind: str, style: str) -> None:
    spec = SPECS[kind]
    h = torch.randn(spec.shape(3))
    seed = Seed(name, spec, style)
    for alpha in (0.0, 0.5, 1.0):
        seed.alpha.fill_(alpha)
        assert torch.equal(seed.blend(h), h)


@EVERY_STYLE
@EVERY
def test_the_gradient_reaches_a_new_seed_at_once_and_all_of_it_soon(name: str, kind: str, style: str) -> None:
    spec = SPECS[kind]
    seed = Seed(name, spec, style)
    seed.alpha.fill_(1.0)
    h, target = torch.randn(spec.shape(4)), torch.randn(spec.shape(4))
    optimizer = torch.optim.SGD(seed.parameters(), lr=0.1)
    reached: set[str] = set()
    for step in range(3):
        optimizer.zero_grad()
        (seed.blend(h) - target).pow(2).mean().backward()
        reached |= {n for n, p in seed.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert reached, f"no gradient at step {step}"
        optimizer.step()
    assert reached == {n for n, _ in seed.named_parameters()}


@EVERY_STYLE
@EVERY
def test_styles_are_what_their_table_says(name: str, kind: str, style: str) -> None:
    spec = SPECS[kind]
    seed = Seed(name, spec, style)
    wake(seed)
    seed.alpha.fill_(0.7)
    h = torch.randn(spec.shape(2))
    delta = seed.blueprint(h)
    if style == "add":
        expected = h + 0.7 * delta
    elif style == "multiply":
        expected = h * (1 + 0.7 * delta)
    else:
        weight, bias = (spec.per_channel(p) for p in seed.style.parameters())
        expected = h + 0.7 * torch.sigmoid(weight * h + bias) * delta
    torch.testing.assert_close(seed.blend(h), expected)


@EVERY_STYLE
@EVERY
def test_the_parameter_count_is_exact(name: str, kind: str, style: str) -> None:
    seed = Seed(name, SPECS[kind], style)
    assert count_parameters(name, SPECS[kind], style) == sum(p.numel() for p in seed.parameters())


@EVERY
def test_flops_are_those_counted_by_hand(name: str, kind: str) -> None:
    spec = SPECS[kind]
    c, positions, image = spec.channels, spec.positions, kind == "image"
    three, five, seven = (9, 9, 25) if image else (3, 5, 7)  # kernels of 3, of 5 (of 3 in images), of 7 (of 5)
    products = {  # multiply-adds for each position
        "norm": 0,
        "lora": 2 * c * (c // 8),
        "lora_large": 2 * c * (c // 2),
        "mlp": 2 * c * 2 * c,
        "mlp_large": 2 * c * 4 * c,
        "gated_mlp": 3 * c * 2 * c,
        "depthwise": seven * 2 * c + 2 * c * c,
        "conv": 2 * three * c * c,
        "conv_large": 2 * three * c * 2 * c,
        "bottleneck": 2 * c * (c // 2) + five * (c // 2) ** 2,
        "dilated": 2 * three * c * c,
        "squeeze_excite": 2 * c * (c // 4) / positions,  # once for all positions
        "attention": 4 * c * c + 2 * positions * c,
    }
    assert count_flops(name, spec) == round(2 * positions * products[name])


@EVERY_STYLE
@EVERY
def test_the_budget_is_charged_what_the_seed_has_and_the_flops_it_takes(name: str, kind: str, style: str) -> None:
    network = grow(host_case(kind))
    network.step(germinate(name, 1, style))
    spec = network.slots[1].spec
    assert network.added_params == sum(p.numel() for p in network.seed_parameters())
    assert network.added_params == count_parameters(name, spec, style)
    seed, h = Seed(name, spec, style), torch.randn(spec.shape(1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        seed.blend(h)
    assert network.added_flops == counter.get_total_flops()


def test_every_blueprint_but_norm_costs_flops() -> None:
    assert {name for name, kind in FITTING if count_flops(name, SPECS[kind]) == 0} == {"norm"}


@EVERY
def test_a_sample_is_answered_alone_and_the_same_in_training_and_evaluation(name: str, kind: str) -> None:
    spec = SPECS[kind]
    blueprint = build_blueprint(name, spec)
    wake(blueprint)
    h = torch.randn(spec.shape(5))
    together = blueprint.train()(h)
    torch.testing.assert_close(torch.cat([blueprint.eval()(one[None]) for one in h]), together)
    assert not list(blueprint.buffers())


@pytest.mark.parametrize("name", [n for n, kind in FITTING if kind == "causal"])
def test_in_a_causal_slot_no_position_sees_the_future(name: str) -> None:
    spec = SPECS["causal"]
    blueprint = build_blueprint(name, spec)
    wake(blueprint)
    h = torch.randn(spec.shape(2))
    changed = h.clone()
    changed[:, 3:] = torch.randn_like(h[:, 3:])
    before, after = blueprint(h), blueprint(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("name", ["depthwise", "conv", "conv_large", "bottleneck", "dilated", "attention"])
@pytest.mark.parametrize("kind", ["sequence", "image"])
def test_mixing_blueprints_do_mix_positions(name: str, kind: str) -> None:
    spec = SPECS[kind]
    blueprint = build_blueprint(name, spec)
    wake(blueprint)
    h = torch.randn(spec.shape(1))
    changed = h.clone()
    first = (0, slice(None), 0, 0) if kind == "image" else (0, 0)
    changed[first] = torch.randn(spec.channels)
    effect = (blueprint(changed) - blueprint(h)).abs()
    effect[first] = 0
    assert effect.max() > 1e-4


@EVERY
def test_other_sizes_than_those_of_the_example_run(name: str, kind: str) -> None:
    spec = SPECS[kind]
    blueprint = build_blueprint(name, spec)
    wake(blueprint)
    shape = {"vector": (7, 8), "sequence": (2, 9, 8), "causal": (2, 9, 8), "image": (2, 8, 3, 7)}[kind]
    assert blueprint(torch.randn(shape)).shape == shape


@EVERY
def test_bfloat16_stays_bfloat16_and_finite(name: str, kind: str) -> None:
    seed = plant(name, SPECS[kind], "gate", entropy=(1,), device=torch.device("cpu"), dtype=torch.bfloat16)
    wake(seed)
    seed.alpha.fill_(1.0)
    h = torch.randn(SPECS[kind].shape(2), dtype=torch.bfloat16)
    out = seed.blend(h)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@EVERY
def test_under_autocast_the_slot_keeps_its_dtype(name: str, kind: str) -> None:
    seed = Seed(name, SPECS[kind], "add")
    wake(seed)
    seed.alpha.fill_(1.0)
    for dtype in (torch.float32, torch.bfloat16):
        h = torch.randn(SPECS[kind].shape(2), dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = seed.blend(h)
        assert out.dtype == dtype
        out.float().sum().backward()


@EVERY
def test_many_seeds_run_as_one_under_vmap(name: str, kind: str) -> None:
    spec = SPECS[kind]
    seeds = [Seed(name, spec, "gate") for _ in range(3)]
    for seed in seeds:
        wake(seed)
        seed.alpha.fill_(0.5)
    h = torch.randn(3, *spec.shape(2))
    parameters, buffers = torch.func.stack_module_state(seeds)
    skeleton = copy.deepcopy(seeds[0]).to("meta")

    def run(p: dict, b: dict, h: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Blend(skeleton), ({f"seed.{k}": v for k, v in {**p, **b}.items()},), (h,))

    expected = torch.stack([seed.blend(one) for seed, one in zip(seeds, h, strict=True)])
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        together = torch.vmap(run)(parameters, buffers, h)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)


class _Blend(nn.Module):
    def __init__(self, seed: Seed) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.seed.blend(h)


@EVERY
def test_every_blueprint_exports(name: str, kind: str) -> None:
    seed = Seed(name, SPECS[kind], "gate")
    wake(seed)
    seed.alpha.fill_(1.0)
    h = torch.randn(SPECS[kind].shape(3))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(_Blend(seed), (h,), dynamic_shapes=({0: batch},))
    more = torch.randn(SPECS[kind].shape(5))
    torch.testing.assert_close(program.module()(more), seed.blend(more))


def test_seeds_are_a_function_of_their_entropy_and_no_random_state_moves() -> None:
    spec = SPECS["sequence"]

    def make(*entropy: int) -> torch.Tensor:
        seed = plant("conv", spec, "add", entropy=entropy, device=torch.device("cpu"), dtype=torch.float32)
        return torch.cat([p.flatten() for p in seed.parameters()])

    before = torch.get_rng_state()
    first = make(0, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(make(0, 1, 2), first)
    assert not torch.equal(make(0, 2, 1), first)


def test_bad_input_is_explained() -> None:
    with pytest.raises(ValueError, match="expected a blueprint out of norm, lora"):
        build_blueprint("convolution", SPECS["image"])
    with pytest.raises(ValueError, match="'conv' does not fit"):
        build_blueprint("conv", SPECS["vector"])
    with pytest.raises(ValueError, match="expected a style out of add, multiply, gate"):
        build_style("sum", SPECS["image"])
    with pytest.raises(ValueError, match="only sequence slots can be causal"):
        SlotSpec("image", 8, (4, 4), causal=True)
    with pytest.raises(ValueError, match="a sequence slot has 1 spatial sizes"):
        SlotSpec("sequence", 8)
    with pytest.raises(ValueError, match="at least 1"):
        SlotSpec("vector", 0)
