"""Statistics merge exactly, stay ordinary tensors, and normalising passes gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from esper.simic.control import RunningMeanStd


def passes_gradients(statistics: RunningMeanStd) -> bool:
    x = torch.randn(6, *statistics.shape).requires_grad_()
    (gradient,) = torch.autograd.grad(statistics.normalize(x).pow(2).sum(), x)
    return bool(torch.isfinite(gradient).all() and (gradient != 0).any())


def are_ordinary(statistics: RunningMeanStd) -> bool:
    return not any(buffer.is_inference() or buffer.requires_grad for buffer in statistics.buffers())


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    offset=st.sampled_from([0.0, 1.0, -1e4, 1e8]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_batches_merge_to_the_statistics_of_the_whole(sizes: list[int], offset: float, scale: float, seed: int) -> None:
    data: NDArray[np.float64] = np.random.default_rng(seed).normal(offset, scale, (sum(sizes), 3))
    statistics = RunningMeanStd((3,))
    for batch in torch.from_numpy(data).split(sizes):
        statistics.update(batch)
    assert statistics.count == len(data)
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-12, atol=1e-9 * scale)
    np.testing.assert_allclose(statistics.var, data.var(0), rtol=1e-6, atol=1e-12 * (1 + offset**2 * 1e-3))


def test_batches_of_one_give_the_statistics_of_the_whole() -> None:
    data = torch.randn(300, 4, dtype=torch.float64) * 7 - 1000
    statistics = RunningMeanStd((4,))
    for row in data:
        statistics.update(row)  # no batch dimension is a batch of one
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.var, data.var(0, correction=0), rtol=1e-10)
    first = RunningMeanStd((4,))
    first.update(data[:1])
    assert torch.equal(first.var, torch.zeros(4, dtype=torch.float64))
    assert torch.isfinite(first.normalize(data)).all()


def test_a_huge_offset_leaves_the_digits_that_vary() -> None:
    data = torch.randn(1000, 2, dtype=torch.float64) + 1e9
    statistics = RunningMeanStd((2,))
    for batch in data.split(50):
        statistics.update(batch)
    normal = statistics.normalize(data)
    torch.testing.assert_close(normal.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_scalars_and_further_dimensions() -> None:
    scalar = RunningMeanStd()
    scalar.update(torch.tensor([1.0, 3.0]))
    scalar.update(torch.tensor(5.0))
    assert (scalar.mean.item(), scalar.count.item()) == (3.0, 3.0)
    image = RunningMeanStd((2, 3))
    image.update(torch.arange(24.0).reshape(2, 2, 2, 3))
    assert torch.equal(image.mean, torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 9)


def test_normalize_passes_gradients_before_and_after_update_and_after_reset() -> None:
    statistics = RunningMeanStd((5,))
    assert passes_gradients(statistics)
    statistics.update(torch.randn(20, 5) * 2)
    assert passes_gradients(statistics)
    assert are_ordinary(statistics)
    statistics.reset()
    assert passes_gradients(statistics)
    statistics.update(torch.randn(20, 5))
    statistics.reset()
    assert (statistics.mean == 0).all()
    assert (statistics.var == 1).all()
    assert statistics.count == 0
    assert are_ordinary(statistics)


def test_the_gradient_is_one_over_the_deviation_and_none_where_clipped() -> None:
    statistics = RunningMeanStd((1,))
    statistics.update(torch.tensor([[0.0], [4.0]]))
    x = torch.tensor([[3.0], [1000.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(statistics.normalize(x).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.5], [0.0]]))


def test_statistics_carry_no_gradient_and_may_change_before_the_backward_pass() -> None:
    statistics = RunningMeanStd((2,))
    statistics.update(torch.randn(10, 2, requires_grad=True))
    x = torch.randn(4, 2, requires_grad=True)
    y = statistics.normalize(x)
    statistics.update(torch.randn(10, 2))
    y.sum().backward()
    assert x.grad is not None


def test_everything_works_under_inference_mode_and_trains_afterwards() -> None:
    statistics = RunningMeanStd((3,))
    with torch.inference_mode():
        statistics.update(torch.randn(8, 3))
        statistics.reset()
        statistics.update(torch.randn(8, 3))
        assert statistics.normalize(torch.randn(2, 3)).is_inference()
    assert are_ordinary(statistics)
    assert passes_gradients(statistics)


def test_state_dict_restores_the_statistics() -> None:
    statistics, restored = RunningMeanStd((3,)), RunningMeanStd((3,))
    statistics.update(torch.randn(8, 3) + 4)
    restored.load_state_dict(statistics.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(statistics.normalize(x), restored.normalize(x))
    for one in (statistics, restored):
        one.update(x)
    assert torch.equal(statistics.var, restored.var)
    assert statistics.mean.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize_keeps_shape_and_type_and_clips(dtype: torch.dtype) -> None:
    statistics = RunningMeanStd((3,))
    statistics.update(torch.randn(100, 3))
    x = torch.tensor([[[1e6, -1e6, 0.1]]], dtype=dtype)
    y = statistics.normalize(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    assert (y[0, 0, 0], y[0, 0, 1]) == (10, -10)
    assert statistics.normalize(x, clip=2.0).abs().max() == 2


def test_no_observations_change_nothing() -> None:
    statistics = RunningMeanStd((2,))
    statistics.update(torch.randn(5, 2))
    before = {name: x.clone() for name, x in statistics.state_dict().items()}
    statistics.update(torch.empty(0, 2))
    assert all(torch.equal(before[name], x) for name, x in statistics.state_dict().items())


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(4, 3), r"expected observations of shape \[..., 2\], got \[4, 3\]"),
        (torch.zeros(()), r"expected observations of shape \[..., 2\], got \[\]"),
        (torch.tensor([[0.0, torch.nan]]), "expected finite observations"),
        (torch.tensor([[0.0, -torch.inf]]), "expected finite observations"),
    ],
)
def test_bad_observations_are_refused_and_leave_the_statistics_alone(x: Tensor, says: str) -> None:
    statistics = RunningMeanStd((2,))
    with pytest.raises(ValueError, match=says):
        statistics.update(x)
    assert statistics.count == 0
    assert (statistics.mean == 0).all()


def test_whole_numbers_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match=r"expected floating point observations, got torch.int64"):
        RunningMeanStd((2,)).normalize(torch.zeros(3, 2).long())


def test_only_what_is_chosen_is_normalised() -> None:
    """What is not chosen passes as it is, unclipped, with its gradient; the choice is saved with the statistics."""
    statistics = RunningMeanStd((3,), chosen=torch.tensor([True, False, True]))
    data = torch.randn(50, 3) * 5 + 100
    statistics.update(data)
    x = data[:4].clone().requires_grad_()
    shown = statistics.normalize(x)
    everything = RunningMeanStd((3,))
    everything.update(data)
    assert torch.equal(shown[:, 1], x[:, 1])
    assert torch.equal(shown[:, ::2], everything.normalize(x)[:, ::2])
    (gradient,) = torch.autograd.grad(shown[:, 1].sum(), x)
    assert torch.equal(gradient[:, 1], torch.ones(4))
    everything.load_state_dict(statistics.state_dict())
    assert torch.equal(everything.normalize(x), shown)
