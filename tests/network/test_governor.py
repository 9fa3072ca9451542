"""The governor notices divergence and takes the run back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from esper.lifecycle import Stage
from esper.network.governor import Governor
from esper.network.growing_network import GrowingNetwork
from network.hosts import WAIT, HostCase, advance, germinate, grow, host_case, of_host, same, wake


class Run:
    """A run with a governor, trained towards a fixed target."""

    def __init__(self, kind: str = "vector", lr: float = 0.01) -> None:
        self.case: HostCase = host_case(kind)
        self.optimizer = Adam(self.case.model.parameters(), lr=lr)
        self.network: GrowingNetwork = grow(self.case, optimizer=self.optimizer)
        self.governor = Governor(self.network, self.optimizer)

    def train(self, steps: int = 3) -> float:
        losses = []
        for _ in range(steps):
            with self.network.measure():
                self.optimizer.zero_grad()
                loss = (self.case.model.train()(self.case.x) - 1).pow(2).mean()
                loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return sum(losses) / steps

    def good_interval(self) -> None:
        assert not self.governor.check(self.train())
        self.governor.take_snapshot()

    def state(self) -> dict:
        return copy.deepcopy(
            {
                "growth": self.network.state_dict(),
                "model": self.case.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )


def feed(*losses: float) -> Governor:
    governor = Run().governor
    for loss in losses:
        assert not governor.check(loss)
    return governor


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence_from_the_first(loss: float) -> None:
    assert feed().check(loss)
    assert feed(2.3, 2.2).check(loss)


@pytest.mark.parametrize("validated", [(math.nan, 0.5), (2.2, math.nan), (math.inf, 0.0)])
def test_what_is_not_finite_on_validation_data_is_divergence_too(validated: tuple[float, float]) -> None:
    governor = feed(2.3)
    assert governor.check(2.2, *validated)
    assert not governor.check(2.2, 99.0, -5.0), "a high validation loss alone is not"


def test_the_band_follows_the_loss_and_lets_noise_pass() -> None:
    governor = feed(2.3, 1.9, 1.5, 1.6, 1.1, 0.9, 1.2, 0.7, 0.5, 0.9, 0.4, 0.3)
    assert not governor.check(1.2)
    assert all(governor.check(8.0) for _ in range(20)), "a bad loss is not remembered"
    assert not governor.check(0.3)


def test_the_band_holds_for_small_large_noisy_and_negative_losses() -> None:
    torch.manual_seed(0)
    for scale, shift in [(1e-3, 0), (1e3, 0), (1.0, -50)]:
        noise = torch.randn(200).mul(0.3).add(1).abs() * scale + shift
        governor = feed(*noise.tolist())
        assert governor.check(100 * scale + 100 * abs(shift))


@pytest.mark.parametrize(
    ("losses", "limit"),
    [
        ([3.0] + [0.1] * 16, 0.1 + 3.0 / 2),  # half the first loss, however long ago: a nearly solved task may stumble
        ([1.0, 2.5] + [5.0] * 16, 5.0 + 2 * 5.0),  # twice the median
        ([1.0] + [0.0, 2.0, 1.0] * 4, 1.0 + 6 * 1.4826 * 1.0),  # six deviations
        ([-1.0] + [-3.0] * 16, -3.0 + 2 * 3.0),
    ],
)
def test_the_band_ends_where_its_equation_says(losses: list[float], limit: float) -> None:
    governor = feed(*losses)
    assert governor.limit == pytest.approx(limit)
    assert not governor.check(limit - 1e-6)
    assert governor.check(limit + 1e-3)


def test_rolling_back_restores_model_optimizer_and_growth_bit_for_bit() -> None:
    run = Run("image")
    run.good_interval()
    run.network.step(germinate("conv"))
    run.good_interval()
    good = run.state()
    run.network.step(WAIT)
    with torch.no_grad():
        for parameter in run.case.model.parameters():
            parameter.fill_(float("nan"))
    assert run.governor.check(run.train())
    assert run.governor.roll_back() == [], "the seed in isolation is not to blame"
    run.network.decision -= 1
    assert same(run.state(), good)
    run.network.decision += 1
    assert all(p.grad is None for p in run.case.model.parameters())
    run.good_interval()


def test_the_decision_and_the_learning_rate_do_not_go_back() -> None:
    run = Run()
    scheduler = LambdaLR(run.optimizer, lambda t: 0.5**t)
    run.good_interval()
    run.network.step(WAIT)
    run.train()
    scheduler.step()
    assert run.governor.check(math.nan)
    run.governor.roll_back()
    assert run.network.decision == 1
    assert run.optimizer.param_groups[0]["lr"] == 0.005
    scheduler.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.0025


def test_an_injected_nan_in_a_blending_seed_prunes_that_seed() -> None:
    run = Run()
    run.network.step(germinate("mlp", 0))
    run.network.step(germinate("mlp", 1))
    run.good_interval()
    run.network.step(advance(1))
    with torch.no_grad():
        next(run.network.slots[1].seed.parameters()).fill_(float("nan"))
    assert run.governor.check(run.train())
    (event,) = run.governor.roll_back()
    assert (event.kind, event.slot) == ("pruned", "3")
    assert [slot.stage for slot in run.network.slots] == [Stage.TRAINING, Stage.EMBARGOED]
    run.good_interval()


def test_a_seed_that_explodes_in_isolation_is_found_before_it_can_harm() -> None:
    run = Run()
    run.network.step(germinate("mlp", 0))
    run.network.step(germinate("norm", 1))
    run.good_interval()
    with torch.no_grad():
        next(run.network.slots[0].seed.parameters()).fill_(float("inf"))
    run.network.step(WAIT)
    loss = run.train()
    assert math.isfinite(loss), "the host does not feel it"
    assert run.governor.check(loss)
    (event,) = run.governor.roll_back()
    assert event.slot == "1"
    assert run.network.slots[1].stage is Stage.TRAINING


def test_an_exploding_seed_is_blamed_by_its_loudness_rather_than_one_that_moves() -> None:
    run = Run(lr=1e-5)
    for slot in range(2):
        run.network.step(germinate("mlp", slot))
    run.network.step(advance(1))
    for _ in range(3):
        run.network.step(WAIT)
        run.good_interval()
    run.network.step(advance(0, "slow"))
    wake(run.network.slots[1].seed, scale=100.0)
    assert run.governor.check(run.train())
    (event,) = run.governor.roll_back()
    assert event.slot == "3"
    assert run.network.slots[0].stage is Stage.TRAINING, "its advance was taken back"


def test_a_settled_seed_whose_output_is_not_a_number_is_blamed_rather_than_one_that_moves() -> None:
    """Its weights are finite, but zero times what overflows is no number."""
    run = Run(lr=1e-5)
    run.network.step(germinate("mlp", 0))
    run.network.step(germinate("mlp", 1, "multiply"))
    run.network.step(advance(1))
    for _ in range(2):
        run.network.step(WAIT)
        run.good_interval()
    run.network.step(advance(0, "slow"))
    wake(run.network.slots[1].seed, scale=1e30)
    assert run.governor.check(run.train(1))
    assert math.isnan(run.network.slots[1].statistics.seed_output_rms)
    (event,) = run.governor.roll_back()
    assert event.slot == "3"


def test_a_settled_seed_is_not_blamed_for_what_had_broken_before_it_was_measured() -> None:
    """A batch after a NaN every number of the network is one, so the measured output tells nothing about its seed."""
    run = Run(lr=1e-5)
    for slot in range(2):
        run.network.step(germinate("mlp", slot))
    run.network.step(advance(0))
    for _ in range(2):
        run.network.step(WAIT)
        run.good_interval()
    run.network.step(advance(1))
    wake(run.network.slots[1].seed, scale=1e30)
    assert run.governor.check(run.train(3))
    assert math.isnan(run.network.slots[0].statistics.seed_output_rms)
    (event,) = run.governor.roll_back()
    assert event.slot == "3", "the one that moves"
    assert run.network.slots[0].stage is Stage.HOLDING


def test_a_learning_rate_spike_blames_no_settled_seed() -> None:
    run = Run()
    run.network.step(germinate("mlp", 0))
    run.network.step(advance(0))
    for _ in range(4):
        run.network.step(WAIT)
        run.good_interval()
    good = copy.deepcopy(of_host(run.case.model.state_dict().items()))
    run.optimizer.param_groups[0]["lr"] = 1e4
    run.network.step(WAIT)
    assert run.governor.check(run.train())
    run.optimizer.param_groups[0]["lr"] = 0.01
    events = run.governor.roll_back()
    assert same(of_host(run.case.model.state_dict().items()), good)
    assert run.network.slots[0].stage in (Stage.HOLDING, Stage.EMBARGOED)
    assert all(event.kind == "pruned" for event in events)
    run.good_interval()


def test_a_seed_that_was_germinated_after_the_snapshot_is_simply_gone() -> None:
    run = Run()
    run.good_interval()
    run.network.step(germinate("mlp", 0))
    with torch.no_grad():
        next(run.network.slots[0].seed.parameters()).fill_(float("nan"))
    assert run.governor.check(run.train())
    assert run.governor.roll_back() == []
    assert run.network.slots[0].stage is Stage.DORMANT
    assert len(run.optimizer.param_groups[0]["params"]) == 6


def test_rolling_back_twice_ends_in_the_same_place() -> None:
    run = Run()
    run.good_interval()
    good = run.state()
    for _ in range(2):
        run.optimizer.param_groups[0]["lr"] = 1e3
        run.train()
        assert run.governor.check(math.inf)
        run.governor.roll_back()
        run.optimizer.param_groups[0]["lr"] = 0.01
        assert same(run.state(), good)


def test_the_band_is_saved() -> None:
    governor = feed(2.3, 2.2, 2.1)
    twin = Run().governor
    twin.load_state_dict(governor.state_dict())
    assert twin.limit == governor.limit
    assert twin.check(50.0)


def test_a_governor_without_an_optimizer() -> None:
    case = host_case("vector")
    network = grow(case)
    governor = Governor(network)
    before = copy.deepcopy(case.model.state_dict())
    optimizer = SGD(case.model.parameters(), lr=1e6)
    case.loss().backward()
    optimizer.step()
    assert governor.check(math.nan)
    governor.roll_back()
    assert same(dict(case.model.state_dict()), dict(before))
