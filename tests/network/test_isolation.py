"""A TRAINING seed is neither seen nor felt by the host, and learns as if it were blended in."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from esper.actions import STYLES
from esper.network.seed import TRUST_RADIUS, Seed, isolated_gradient, straight_through
from network.hosts import FITTING, SPECS, HostCase, advance, germinate, grow, host_case, of_host, wake

EVERY = pytest.mark.parametrize(("name", "kind"), FITTING)
EVERY_STYLE = pytest.mark.parametrize("style", STYLES)


def bits(tensor: Tensor) -> np.ndarray:
    """The bit pattern: tells -0.0 from 0.0 and compares NaN."""
    return tensor.detach().contiguous().numpy().view(np.uint32)


def outcome(case: HostCase) -> dict[str, np.ndarray]:
    """Output, host gradients and buffers after one training pass, bit for bit."""
    case.model.train().zero_grad()
    output = case.model(case.x)
    output.pow(2).mean().backward()
    grads = {n: bits(p.grad) for n, p in of_host(case.model.named_parameters()).items() if p.grad is not None}
    buffers = {n: b.numpy().copy() for n, b in of_host(case.model.named_buffers()).items()}
    return {"output": bits(output), **grads, **buffers}


@EVERY_STYLE
@EVERY
def test_output_and_gradients_of_the_host_are_bit_identical(name: str, kind: str, style: str) -> None:
    case = host_case(kind)
    alone = HostCase(copy.deepcopy(case.model), case.slots, case.x)
    network = grow(case)
    for slot in range(2):
        network.step(germinate(name, slot, style))
        wake(network.slots[slot].seed)
    with_seeds, without = outcome(case), outcome(alone)
    assert with_seeds.keys() == without.keys()
    for key in without:
        np.testing.assert_array_equal(with_seeds[key], without[key], err_msg=key)
    assert any(p.grad.abs().sum() > 0 for p in network.slots[0].seed.parameters())


@EVERY_STYLE
@EVERY
def test_the_seed_learns_as_if_it_were_blended_in_at_alpha_1(name: str, kind: str, style: str) -> None:
    """At birth the blended output equals the isolated one, so the gradients of the seed are the same in both."""
    case = host_case(kind)
    gradients = []
    network = grow(case)
    network.step(germinate(name, 0, style))
    for decision in (None, advance(0)):
        if decision is not None:
            network.step(decision)
        for p in network.seed_parameters():
            p.grad = None
        case.model.train()
        case.loss().backward()
        gradients.append([p.grad.clone() for p in network.seed_parameters()])
    assert network.slots[0].alpha == 1.0
    for isolated, blended in zip(*gradients, strict=True):
        torch.testing.assert_close(isolated, blended)


def test_negative_zero_nan_and_infinity_stay_what_they_are() -> None:
    h = torch.tensor([-0.0, 0.0, float("nan"), float("inf"), -1e-45])
    effect = torch.tensor([1.0, float("nan"), 0.0, float("inf"), 2.0], requires_grad=True)
    out = straight_through(h, effect)
    np.testing.assert_array_equal(bits(out), bits(h))


def test_a_seed_that_has_exploded_does_not_reach_the_host() -> None:
    case = host_case("image")
    alone = HostCase(copy.deepcopy(case.model), case.slots, case.x)
    network = grow(case)
    network.step(germinate("conv"))
    with torch.no_grad():
        for p in network.seed_parameters():
            p.fill_(float("nan"))
    with_seed, without = outcome(case), outcome(alone)
    for key in without:
        np.testing.assert_array_equal(with_seed[key], without[key], err_msg=key)


def test_a_frozen_host_still_teaches_its_seeds() -> None:
    case = host_case("vector")
    case.model.requires_grad_(False)
    network = grow(case)
    network.step(germinate("mlp"))
    case.loss().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.seed_parameters())


def test_where_nothing_is_learned_an_isolated_seed_is_skipped() -> None:
    case = host_case("vector")
    network = grow(case)
    network.step(germinate("mlp"))
    calls = []
    network.slots[0].seed.blueprint.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        case.model.train()(case.x)
    assert not calls
    case.model(case.x)
    assert calls


def test_a_seed_learns_in_a_part_of_the_host_that_is_kept_in_evaluation_mode() -> None:
    """As where pretrained layers are fine-tuned with the statistics of their BatchNorm frozen."""
    case = host_case("image")
    network = grow(case)
    network.step(germinate("conv"))
    case.model.eval()
    case.loss().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.seed_parameters())


def test_the_gradient_of_an_isolated_seed_is_the_hosts_and_a_price_on_loudness() -> None:
    h, grad = torch.randn(3, 5), torch.randn(3, 5)
    effect = torch.randn(3, 5, requires_grad=True)
    straight_through(h, effect).backward(grad)
    price = grad.pow(2).mean().sqrt() / (TRUST_RADIUS * h.pow(2).mean().sqrt())
    torch.testing.assert_close(effect.grad, grad + price * effect.detach())


def test_stacked_hosts_keep_their_prices_apart() -> None:
    h, grad, effect = torch.randn(3, 2, 4, 5)
    h[0] *= 100
    together = isolated_gradient(grad, h, effect, lambda x: x.square().mean((1, 2), keepdim=True).sqrt())
    apart = torch.stack([isolated_gradient(*one) for one in zip(grad, h, effect, strict=True)])
    torch.testing.assert_close(together, apart)


def test_an_isolated_seed_comes_to_rest_within_its_trust_region() -> None:
    """Under a steady gradient, which is what a host shows that does not feel the seed."""
    h, grad = torch.randn(64, 8), torch.randn(8).expand(64, 8)
    seed = Seed("mlp", SPECS["vector"], "add")
    optimizer = torch.optim.Adam(seed.parameters(), lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        effect = seed.effect(h)
        straight_through(h, effect).backward(grad)
        optimizer.step()
    loudness = (effect.pow(2).mean() / h.pow(2).mean()).sqrt().item()
    assert loudness == pytest.approx(TRUST_RADIUS, rel=0.05)
    assert torch.cosine_similarity(effect.flatten(), -grad.flatten(), dim=0) > 0.95


def test_a_slot_without_activation_gives_a_finite_gradient() -> None:
    effect = torch.zeros(2, 3, requires_grad=True)
    straight_through(torch.zeros(2, 3), effect).backward(torch.ones(2, 3))
    assert effect.grad is not None
    assert effect.grad.isfinite().all()


def test_mixed_precision_training_of_an_isolated_seed() -> None:
    case = host_case("image")
    network = grow(case)
    network.step(germinate("attention"))
    with torch.autocast("cpu", torch.bfloat16):
        case.loss().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.seed_parameters() if p.grad is not None)
    assert any(p.grad is not None for p in network.seed_parameters())


def test_host_code_may_go_on_in_place_on_the_slot() -> None:
    """The slots of the CNN host feed ``relu_`` and ``+=``; its seeds read what was there before."""
    case = host_case("image")
    network = grow(case)
    for slot in range(2):
        network.step(germinate("conv", slot))
        wake(network.slots[slot].seed)
    for stage in ("isolated", "blended"):
        if stage == "blended":
            network.step(advance(0))
            network.step(advance(1))
        case.loss().backward()
        assert all(p.grad is not None for p in network.seed_parameters())
