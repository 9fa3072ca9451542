"""A masked choice has probability exactly 0, its logit gets no gradient, and it is never drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical

from esper.tamiyo.networks.masked_categorical import gumbel_noise
from esper.tamiyo.policy import MaskedCategorical


@st.composite
def logits_and_masks(draw: st.DrawFn, largest: float = 50.0) -> tuple[Tensor, Tensor]:
    rows, choices = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    number = st.floats(-largest, largest, width=32)
    logits = torch.tensor([[draw(number) for _ in range(choices)] for _ in range(rows)])
    mask = torch.tensor([[draw(st.booleans()) for _ in range(choices)] for _ in range(rows)])
    mask[torch.arange(rows), torch.tensor([draw(st.integers(0, choices - 1)) for _ in range(rows)])] = True
    return logits, mask


@settings(deadline=None)
@given(logits_and_masks())
def test_equals_the_categorical_over_the_allowed_choices_alone(drawn: tuple[Tensor, Tensor]) -> None:
    logits, mask = drawn
    distribution = MaskedCategorical(logits, mask)
    for row in range(len(logits)):
        reference = Categorical(logits=logits[row, mask[row]].double())
        torch.testing.assert_close(distribution.probs[row, mask[row]].double(), reference.probs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(distribution.entropy()[row].double(), reference.entropy(), atol=1e-4, rtol=1e-4)
    assert (distribution.probs[~mask] == 0).all()
    assert (distribution.log_probs[~mask] == -torch.inf).all()


@settings(deadline=None)
@given(logits_and_masks(largest=2.0**127), st.sampled_from([0.0, 0.05]))
def test_never_takes_a_masked_choice(drawn: tuple[Tensor, Tensor], floor: float) -> None:
    logits, mask = drawn
    distribution = MaskedCategorical(logits, mask, floor)
    rows = torch.arange(len(logits))
    assert mask[rows, distribution.mode()].all()
    for _ in range(20):
        assert mask[rows, distribution.sample()].all()


@pytest.mark.parametrize("extreme", [0.0, torch.finfo(torch.float32).tiny, torch.inf])
def test_never_draws_a_masked_choice_at_the_edges_of_the_noise(monkeypatch: pytest.MonkeyPatch, extreme: float) -> None:
    monkeypatch.setattr(Tensor, "exponential_", lambda self, generator=None: self.fill_(extreme))
    assert torch.isfinite(gumbel_noise((7,))).all()
    mask = torch.tensor([[False, False, True, False], [False, True, False, True]])
    choices = MaskedCategorical(torch.randn(2, 4), mask).sample()
    assert mask[torch.arange(2), choices].all()


def test_draws_as_often_as_the_probabilities_say() -> None:
    logits = torch.tensor([0.3, -1.0, 5.0, 1.2])
    mask = torch.tensor([True, True, False, True])
    distribution = MaskedCategorical(logits.expand(40_000, 4), mask.expand(40_000, 4))
    frequency = torch.bincount(distribution.sample(torch.Generator().manual_seed(1)), minlength=4) / 40_000
    torch.testing.assert_close(frequency, distribution.probs[0], atol=0.01, rtol=0)


def test_the_same_seed_draws_the_same() -> None:
    distribution = MaskedCategorical(torch.randn(64, 9))
    first, again, other = (distribution.sample(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("floor", [0.0, 0.03])
def test_masked_logits_get_exactly_zero_gradient(dtype: torch.dtype, floor: float) -> None:
    logits = (torch.randn(32, 7) * 5).to(dtype).requires_grad_()
    mask = torch.rand(32, 7) < 0.4
    mask[:, 3] = True
    distribution = MaskedCategorical(logits, mask, floor)
    loss = distribution.log_prob(distribution.sample()).sum() + distribution.entropy().pow(2).sum()
    (gradient,) = torch.autograd.grad(loss + distribution.probs.pow(2).sum(), logits)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).float().mean() > 0.5


def test_a_single_allowed_choice_is_certain_and_gets_no_gradient() -> None:
    for floor in (0.0, 0.1):
        logits = torch.randn(5, 6, requires_grad=True)
        mask = torch.nn.functional.one_hot(torch.arange(5), 6).bool()
        distribution = MaskedCategorical(logits, mask, floor)
        assert (distribution.log_prob(torch.arange(5)) == 0).all()
        assert (distribution.entropy() == 0).all()
        (gradient,) = torch.autograd.grad((distribution.log_probs[mask] + distribution.entropy()).sum(), logits)
        assert (gradient == 0).all()


def test_gradients_equal_finite_differences() -> None:
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    choice = torch.tensor([2, 1])

    def outputs(logits: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        distribution = MaskedCategorical(logits, mask, floor)
        return distribution.log_prob(choice), distribution.entropy()

    for floor in (0.0, 0.05):
        logits = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(outputs, (logits, floor))


@settings(deadline=None)
@given(logits_and_masks(), st.floats(0.001, 0.12))
def test_the_floor_is_the_least_probability_of_an_allowed_choice(drawn: tuple[Tensor, Tensor], floor: float) -> None:
    logits, mask = drawn
    plain, floored = MaskedCategorical(logits, mask), MaskedCategorical(logits, mask, floor)
    allowed = mask.sum(-1, keepdim=True)
    expected = torch.where(mask, floor + (1 - allowed * floor) * plain.probs, 0.0)
    torch.testing.assert_close(floored.probs, expected, atol=1e-6, rtol=1e-5)
    assert (floored.probs[~mask] == 0).all()
    if mask.all():
        torch.testing.assert_close(MaskedCategorical(logits, None, floor).probs, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "mask", "floor", "says"),
    [
        (torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]), 0.0, "head 'verb'.*batch row 1 allows no choice"),
        (torch.zeros(2, 3), torch.ones(2, 3), 0.0, "head 'verb'.*bool mask of shape .2, 3."),
        (torch.zeros(2, 3), torch.ones(2, 4).bool(), 0.0, "head 'verb'.*got torch.bool .2, 4."),
        (torch.tensor([[0.0, torch.nan]]), None, 0.0, "head 'verb': logits must be finite"),
        (torch.zeros(2, 3).long(), None, 0.0, "head 'verb': expected floating point logits, got torch.int64"),
        (torch.zeros(2, 3), None, 0.4, "head 'verb': a probability floor of 0.4 for each of 3 choices"),
        (torch.zeros(2, 3), None, -0.1, "head 'verb': a probability floor of -0.1"),
    ],
)
def test_bad_input_is_named(logits: Tensor, mask: Tensor | None, floor: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MaskedCategorical(logits, mask, floor, "verb")


def test_a_choice_outside_the_head_is_named() -> None:
    distribution = MaskedCategorical(torch.zeros(2, 3), head="verb")
    with pytest.raises(ValueError, match="head 'verb': a choice must be from 0 to 2, got 3"):
        distribution.log_prob(torch.tensor([0, 3]))
