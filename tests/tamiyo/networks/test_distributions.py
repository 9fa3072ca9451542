"""Numbers and bits: densities that are right up to the bounds, masks, and that hybrid actions are whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from esper.heads import Head, HeadTable
from esper.tamiyo.networks import Evaluation, FactoredRecurrentActorCritic, NetworkConfig
from esper.tamiyo.networks.action_tree import correlate, noise_for
from esper.tamiyo.networks.distributions import Bernoullis, SquashedGaussian

HYBRID = HeadTable(
    [
        Head("verb", 3),
        Head("aim", 2, kind="gaussian", parent="verb", used_when={"verb": (1, 2)}),
        Head("lamps", 3, kind="bernoulli", parent="verb", used_when={"verb": (2,)}),
        Head("loud", 2),
    ]
)


def gaussian(mean: float, deviation: float, dtype: torch.dtype = torch.float64) -> SquashedGaussian:
    """One number; the output that makes this deviation."""
    raw = math.log(math.expm1(deviation - 0.01)) - math.log(math.e - 1)
    return SquashedGaussian(torch.tensor([[mean, raw]], dtype=dtype))


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 2.0), (0.3, 0.05)])
def test_the_density_of_what_the_environment_gets_integrates_to_one(mean: float, deviation: float) -> None:
    """In a = tanh(u); and the entropy is that of a."""
    distribution = gaussian(mean, deviation)

    def density(a: float) -> float:
        return distribution.log_prob(torch.tensor([[math.atanh(a)]], dtype=torch.float64)).exp().item()

    peak = math.tanh(mean)
    whole, _ = integrate.quad(density, -1 + 1e-12, 1 - 1e-12, points=[peak, -0.99, 0.99], limit=500)
    assert whole == pytest.approx(1, abs=1e-4)
    surprise = integrate.quad(
        lambda a: -density(a) * math.log(max(density(a), 1e-300)),
        *(-1 + 1e-12, 1 - 1e-12),
        points=[peak, -0.99, 0.99],
        limit=500,
    )[0]
    assert distribution.entropy().item() == pytest.approx(surprise, abs=5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_finite_and_right_at_the_bounds(dtype: torch.dtype) -> None:
    """So near a bound that the number is the bound: an action could not be turned back, a choice need not be."""
    distribution = gaussian(8.0, 3.0, dtype)
    choice = torch.tensor([[16.0]])
    assert SquashedGaussian.bounded(choice).item() == 1.0
    slope = math.log(4) - 2 * 16.0  # of tanh, far out
    mean, deviation = distribution.mean.item(), distribution.deviation.item()
    expected = stats.norm.logpdf(16.0, mean, deviation) - slope
    assert distribution.log_prob(choice).item() == pytest.approx(expected, rel=1e-5)


def test_the_entropy_is_greatest_in_between_and_below_that_of_a_uniform_draw() -> None:
    entropies = [gaussian(0.0, deviation).entropy().item() for deviation in (0.1, 0.5, 0.9, 2.0, 5.0)]
    assert max(entropies) == entropies[2] < math.log(2)


def test_draws_follow_the_distribution() -> None:
    distribution = SquashedGaussian(torch.tensor([[0.5, -1.0, 0.0, 1.0]]).expand(20_000, 4))
    drawn = distribution.sample(torch.Generator().manual_seed(0))
    for i in range(2):
        reference = stats.norm(distribution.mean[0, i].item(), distribution.deviation[0, i].item())
        assert stats.kstest(drawn[:, i].numpy(), reference.cdf).pvalue > 0.001
    assert torch.equal(distribution.mode(), distribution.mean)


# ---------------------------------------------------------------------- bits


def test_bits_are_independent_and_masked() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    mask = torch.tensor([[[True, True], [False, True], [True, True]]])
    distribution = Bernoullis(logits, mask)
    total = 0.0
    for bits in np.ndindex(2, 2, 2):
        expected = np.prod([p if b else 1 - p for b, p in zip(bits, [0.5744425, 1.0, 0.8807971], strict=True)])
        found = distribution.log_prob(torch.tensor([bits])).exp().item()
        assert found == pytest.approx(expected, abs=1e-6)
        total += found
    assert total == pytest.approx(1)
    assert distribution.sample(torch.Generator().manual_seed(1))[0, 1] == 1
    assert distribution.mode().tolist() == [[1, 1, 1]]
    entropy = sum(stats.bernoulli(p).entropy() for p in (0.5744425, 0.8807971))
    assert distribution.entropy().item() == pytest.approx(entropy, abs=1e-5)


# ---------------------------------------------------------------------- whole actions


def hybrid(**sizes: object) -> FactoredRecurrentActorCritic:
    network = FactoredRecurrentActorCritic(NetworkConfig(heads=HYBRID, state_dim=5, hidden_dim=8, head_dim=6), **sizes)
    with torch.no_grad():
        network.tree.output.weight.mul_(50)
    return network


def judged(network: FactoredRecurrentActorCritic, state: Tensor, actions: dict[str, Tensor]) -> Evaluation:
    masks: dict[str, Tensor | None] = dict.fromkeys(network.heads.names)
    return network.evaluate_actions(state[:, None], None, {h: a[:, None] for h, a in actions.items()}, masks)


def test_a_choice_decides_which_numbers_and_bits_are_used() -> None:
    network, state = hybrid(), torch.randn(400, 5)
    output = network.get_action(state, None, dict.fromkeys(HYBRID.names))
    verb, evaluation = output.sampled_op, judged(network, state, output.actions)
    for name, users in (("aim", (1, 2)), ("lamps", (2,))):
        used = torch.isin(verb, torch.tensor(users))
        assert used.any()
        assert not used.all()
        assert torch.equal(evaluation.used[name][:, 0], used)
        assert torch.equal(evaluation.could_matter[name][:, 0], used)
        for unused in (output.actions[name], output.log_probs[name], output.entropies[name]):
            assert not unused[~used].any()
        assert output.log_probs[name][used].all()
    assert output.actions["aim"].shape == (400, 2)
    assert output.actions["lamps"].unique().tolist() == [0, 1]


def test_what_an_unused_head_stored_is_not_read() -> None:
    network, state = hybrid(), torch.randn(100, 5)
    actions = network.get_action(state, None, dict.fromkeys(HYBRID.names)).actions
    unused = actions["verb"] == 0
    other = actions | {"aim": actions["aim"].masked_fill(unused[:, None], math.nan)}
    for name in HYBRID.names:
        first, second = (judged(network, state, a).log_probs[name] for a in (actions, other))
        assert torch.equal(first, second)


@pytest.mark.parametrize("deterministic", [False, True])
def test_rollout_and_update_agree_on_every_kind_of_head(deterministic: bool) -> None:
    network, state = hybrid(), torch.randn(300, 5)
    output = network.get_action(state, None, dict.fromkeys(HYBRID.names), deterministic=deterministic)
    evaluation = judged(network, state, output.actions)
    for name in HYBRID.names:
        torch.testing.assert_close(evaluation.log_probs[name][:, 0], output.log_probs[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(evaluation.entropy[name][:, 0], output.entropies[name], atol=1e-5, rtol=0)


def test_later_heads_see_the_numbers_that_were_drawn() -> None:
    network, state = hybrid(), torch.randn(1, 5)
    with torch.no_grad():
        network.tree.heads[1].conditioning.weight.mul_(10)
    actions = network.get_action(state, None, dict.fromkeys(HYBRID.names)).actions | {"verb": torch.tensor([1])}
    loud = [
        judged(network, state, actions | {"aim": torch.full((1, 2), aim)}).log_probs["loud"].item()
        for aim in (-1.0, 1.0)
    ]
    assert abs(loud[0] - loud[1]) > 1e-3


def test_gradients_of_the_hybrid_log_probability_are_those_of_finite_differences() -> None:
    """Of the whole action's, and of the entropies', by every weight that has one."""
    torch.manual_seed(0)
    network = hybrid().double()
    state = torch.randn(6, 5, dtype=torch.float64)
    actions = network.get_action(state, None, dict.fromkeys(HYBRID.names)).actions
    actions["verb"] = torch.tensor([0, 1, 2, 0, 1, 2])
    actions["lamps"] = torch.randint(2, (6, 3))

    def total() -> Tensor:
        evaluation = judged(network, state, actions)
        parts = [*evaluation.log_probs.values(), *evaluation.entropy.values()]
        return (torch.stack(parts) * torch.arange(1, 9).view(8, 1, 1)).sum()

    total().backward()
    step, compared = 1e-6, 0
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.grad is None:
                assert name.startswith("critic")
                continue
            flat = weight.view(-1)
            for i in range(0, flat.numel(), max(1, flat.numel() // 7)):
                before = flat[i].item()
                flat[i] = before + step
                above = total().item()
                flat[i] = before - step
                below = total().item()
                flat[i] = before
                assert weight.grad.view(-1)[i].item() == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)
                compared += 1
    assert compared > 100


def test_masks_of_bits_hang_on_the_parent() -> None:
    network, state = hybrid(), torch.randn(200, 5)
    mask = torch.ones(200, 3, 3, 2, dtype=torch.bool)
    mask[:, 2, 1, 0] = False  # verb 2 must take the second lamp
    mask[:, 2, 2, 1] = False  # and may not take the third
    output = network.get_action(state, None, {"verb": None, "aim": None, "lamps": mask, "loud": None})
    lamps = output.actions["lamps"][output.sampled_op == 2]
    assert len(lamps)
    assert lamps[:, 1].all()
    assert not lamps[:, 2].any()
    assert torch.isfinite(output.log_probs["lamps"]).all()


# ---------------------------------------------------------------------- without ops, and bad input


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_where_the_first_head_is_not_categorical_the_critic_is_v_alone(kind: str) -> None:
    network = FactoredRecurrentActorCritic(
        NetworkConfig(heads=HeadTable([Head("move", 2, kind=kind), Head("loud", 2)]), state_dim=3)
    )
    state, masks = torch.randn(4, 3), {"move": None, "loud": None}
    output = network.get_action(state, None, masks)
    assert output.op_values.shape == (4, 1)
    assert torch.equal(output.value, output.state_value)
    torch.testing.assert_close(network.state_value(state, None, masks), output.value)
    with pytest.raises(ValueError, match=f"op_share=0.5 compares ops, but 'move' is {kind}"):
        network.get_action(state, None, masks, deterministic=True, op_share=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aim": torch.zeros(4, 3)}, r"head 'aim': expected actions of type floating point and shape \[4, 1, 2\], got"),
        ({"aim": torch.zeros(4, 2).long()}, "head 'aim': expected actions of type floating point"),
        ({"lamps": torch.full((4, 3), 2)}, "head 'lamps': a stored action must be from 0 to 1, got 2"),
        (
            {"aim": torch.full((4, 2), math.nan)},
            r"head 'aim': the stored action \[nan, nan\] of batch row 0.*not finite",
        ),
    ],
)
def test_stored_actions_that_do_not_fit_are_named(change: dict[str, Tensor], message: str) -> None:
    network, state = hybrid(), torch.randn(4, 5)
    actions = network.get_action(state, None, dict.fromkeys(HYBRID.names)).actions | {"verb": torch.ones(4).long()}
    with pytest.raises(ValueError, match=message):
        judged(network, state, actions | change)


def test_numbers_have_no_mask_and_no_floor() -> None:
    masks = dict.fromkeys(HYBRID.names) | {"aim": torch.ones(4, 2, dtype=torch.bool)}
    with pytest.raises(
        ValueError, match="head 'aim' is Gaussian, and numbers have no mask; give None, and say by used"
    ):
        hybrid().get_action(torch.zeros(4, 5), None, masks)
    with pytest.raises(ValueError, match="head 'aim' is Gaussian: it has no choices for a probability_floor"):
        hybrid(probability_floor={"aim": 0.1})
    assert hybrid(probability_floor=0.01).config.floors == {"verb": 0.01, "aim": 0.0, "lamps": 0.01, "loud": 0.01}


def test_a_table_says_what_may_not_be_a_parent() -> None:
    aim = Head("aim", 2, kind="gaussian")
    with pytest.raises(ValueError, match="its parent 'aim' is gaussian; only a categorical head can be a parent"):
        HeadTable([aim, Head("loud", 2, parent="aim")])
    with pytest.raises(ValueError, match="used_when names 'aim', which is not categorical"):
        HeadTable([aim, Head("loud", 2, used_when={"aim": (1,)})])
    with pytest.raises(ValueError, match="a bernoulli head draws 1 number or more, got 0"):
        HeadTable([Head("verb", 2), Head("lamps", 0, kind="bernoulli")])
    with pytest.raises(ValueError, match=r"expected a kind of .* got 'beta'"):
        HeadTable([Head("x", 2, kind="beta")])  # type: ignore[arg-type]
    assert HeadTable.from_json(HYBRID.to_json()) == HYBRID


def test_correlated_noise_is_standard_normal_at_every_step() -> None:
    """Whoever looks at one step cannot tell: so the log-probability of a choice is that of its head."""
    heads = HeadTable([Head("verb", 3), Head("aim", 2, kind="gaussian"), Head("bits", 2, kind="bernoulli")])
    independent = noise_for(heads, 0, (6, 200_000), torch.device("cpu"), torch.Generator().manual_seed(0))
    noise = correlate(independent, heads, 0.8)
    for name in ("verb", "bits"):
        assert torch.equal(noise[name], independent[name])
    aim = noise["aim"].double()
    torch.testing.assert_close(aim.mean(1), torch.zeros(6, 2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(aim.std(1), torch.ones(6, 2).double(), atol=0.01, rtol=0)
    for distance in (1, 2, 5):
        together = (aim[distance:] * aim[:-distance]).mean(1)
        torch.testing.assert_close(together, torch.full_like(together, 0.8**distance), atol=0.015, rtol=0)
    assert (aim[..., 0] * aim[..., 1]).mean().abs() < 0.01
