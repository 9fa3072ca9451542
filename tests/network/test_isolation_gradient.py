"""What a seed in isolation learns from: the host's gradient, within a trust region."""

import torch

from esper.network.seed import TRUST_RADIUS, isolated_gradient


def test_a_newborn_seed_gets_the_hosts_gradient_as_it_is():
    grad, h = torch.randn(8, 5), torch.randn(8, 5)
    assert torch.equal(isolated_gradient(grad, h, torch.zeros(8, 5)), grad)


def test_descent_along_it_comes_to_rest_within_the_trust_radius():
    grad, h, effect = torch.randn(8, 5) * 1e-3, torch.randn(8, 5), torch.zeros(8, 5)
    for _ in range(3_000):
        effect = effect - 10.0 * isolated_gradient(grad, h, effect)
    rms = lambda x: x.square().mean().sqrt()  # noqa: E731
    torch.testing.assert_close(rms(effect), TRUST_RADIUS * rms(h), rtol=1e-3, atol=0)
    torch.testing.assert_close(effect / rms(effect), -grad / rms(grad), rtol=1e-3, atol=1e-4)


def test_a_silent_slot_gives_a_finite_gradient():
    grad, silent = torch.randn(8, 5), torch.zeros(8, 5)
    assert isolated_gradient(grad, silent, torch.zeros(8, 5)).isfinite().all()


def test_stacked_hosts_keep_their_scales_apart():
    grad, h, effect = torch.randn(3, 8, 5), torch.randn(3, 8, 5), torch.randn(3, 8, 5)
    together = isolated_gradient(grad, h, effect, lambda x: x.square().mean((1, 2), keepdim=True).sqrt())
    for k in range(3):
        torch.testing.assert_close(together[k], isolated_gradient(grad[k], h[k], effect[k]))
