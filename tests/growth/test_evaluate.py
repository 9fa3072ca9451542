"""What evaluate() may return, what it is worth, and networks that grow by scores that are no accuracy."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import average_precision_score, r2_score
from torch import Tensor, nn

import esper
from esper.growth.evaluate import checked
from esper.modes import modes_kept
from esper.network.history import History
from esper.tasks import CharLM
from growing import Loop

# ------------------------------------------------------------------------------------------- what may be returned


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0, -0.001, -50.0])
def test_any_score_up_to_1_is_taken_as_it_is(score):
    assert checked((0.5, score), chance_loss=None, finite=True) == (0.5, score)


def test_a_score_that_is_above_1_by_rounding_is_1():
    assert checked((0.5, 1 + 1e-7), chance_loss=None, finite=True) == (0.5, 1.0)


@pytest.mark.parametrize("loss", [1.5, torch.tensor(1.5), torch.tensor([1.5]), torch.tensor(1.5).numpy()])
def test_the_score_of_a_loss_alone_is_the_share_of_the_guess_loss_that_is_done_away_with(loss):
    assert checked(loss, chance_loss=2.0, finite=True) == (1.5, 0.25)
    assert checked(0.0, chance_loss=2.0, finite=True) == (0.0, 1.0)
    assert checked(6.0, chance_loss=2.0, finite=True) == (6.0, -2.0)


@pytest.mark.parametrize(
    ("result", "chance_loss", "message"),
    [
        ((0.5, 93.2), None, r"at most 1.*got 93.2. If it is in percent, divide it by 100"),
        ((0.5, math.exp(3)), None, "in place of a perplexity return the loss alone"),
        ((0.5, math.inf), None, "at most 1"),
        (2.3, None, r"got the loss 2.3 alone. Give Growth\(..., chance_loss=\)"),
        ((2.3, 0.4), 3.0, "must return the loss alone where Growth got a chance_loss"),
        (-0.1, 3.0, "loss of 0 or more where it returns a loss alone, got -0.1"),
        ({"eval_loss": 2.3, "eval_accuracy": 0.4}, None, r"pair of numbers, \(loss, score\), or a loss alone"),
        (torch.ones(3), 3.0, r"pair of numbers, \(loss, score\), or a loss alone"),
        (None, 3.0, "Does it end with a return"),
    ],
)
def test_what_is_no_score_asks_for_what_it_is(result, chance_loss, message):
    with pytest.raises(ValueError, match=message):
        checked(result, chance_loss=chance_loss, finite=True, name="mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chance_loss": 0.0}, "chance_loss is the loss of a constant guess, a number above 0, got 0"),
        ({"chance_loss": math.nan}, "a number above 0, got nan"),
        ({"chance_score": 10}, r"chance_score .* a share in \[0, 1\], got 10"),
        ({"chance_score": 0.1, "chance_loss": 2.3}, "give one of them"),
    ],
)
def test_what_a_guess_reaches_must_make_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Loop(**options)


def test_a_policy_sees_scores_of_0_to_1_and_those_in_between_unchanged():
    run = History(horizon=None, rent=0.02)
    for score in (-50.0, -0.001, 0.0, 0.1 + 0.2, 1.0):
        run.record(0.5, score)
    assert run.scores == [0.0, 0.0, 0.0, 0.1 + 0.2, 1.0]


# ------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    "result", [(0.5, math.nan), (0.5, -math.inf), (math.inf, -50.0), (math.nan, 93.2), (900.0, -50.0)], ids=str
)
def test_a_run_that_diverges_is_rolled_back_whatever_its_score_is(result):
    loop = Loop()
    loop.epochs(2)
    loop.train()
    results = iter([result])
    step = loop.growth.step(lambda: next(results, None) or loop.evaluate())
    assert step.rolled_back
    assert step.score == loop.growth.history[-2].score


def test_a_loss_alone_that_diverges_is_rolled_back():
    loop = Loop(chance_loss=1.1)
    steps = []
    for losses in ([1.0], [0.9], [math.inf, 0.9], [0.8]):
        loop.train()
        answers = iter(losses)
        steps.append(loop.growth.step(lambda: next(answers)))  # noqa: B023 - called at once
    assert [step.rolled_back for step in steps] == [False, False, True, False]
    assert steps[2].score == pytest.approx(1 - 0.9 / 1.1)


# ------------------------------------------------------------------------------------------- networks that grow


@dataclass
class Case:
    """A host, real data, and how its quality is told; samples from ``cut`` on are validation data."""

    host: Callable[[], nn.Module]
    slot: str
    x: Tensor
    y: Tensor
    cut: int
    loss: Callable[[Tensor, Tensor], Tensor]
    evaluate: Callable[[Tensor, Tensor], Any]
    epochs: int
    learning_rate: float
    options: dict[str, Any] = field(default_factory=dict)

    def grow(self, **options: Any) -> esper.Growth:
        torch.manual_seed(0)
        model = self.host()
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        options = {"slots": [self.slot], "horizon": self.epochs} | self.options | options
        growth = esper.Growth(model, optimizer, example_input=self.x[:2], **options)
        for _ in range(self.epochs):
            model.train()
            for batch in torch.randperm(self.cut).split(64):
                optimizer.zero_grad()
                self.loss(model(self.x[batch]), self.y[batch]).backward()
                optimizer.step()
            growth.step(lambda: self.evaluate(model.eval()(self.x[self.cut :]), self.y[self.cut :]))
        return growth


def regression() -> Case:
    """Progression of diabetes; the targets are not centred, so the network begins far below R² = 0."""
    x, y = load_diabetes(return_X_y=True)
    return Case(
        host=lambda: nn.Sequential(nn.Linear(10, 2), nn.ReLU(), nn.Linear(2, 1), nn.Flatten(0)),
        slot="1",
        x=torch.tensor(x, dtype=torch.float32) * 20,
        y=torch.tensor(y, dtype=torch.float32) / 50,
        cut=300,
        loss=F.mse_loss,
        evaluate=lambda output, y: (F.mse_loss(output, y), r2_score(y, output)),
        epochs=14,
        learning_rate=1e-2,
    )


def regression_by_its_loss() -> Case:
    case = regression()
    case.evaluate = F.mse_loss
    case.options = {"chance_loss": float(case.y[case.cut :].var(correction=0))}
    return case


def language_model() -> Case:
    """Python's help texts; a constant guess is that of the frequencies of the characters."""
    task = CharLM()
    splits = task.splits()
    x, y = (torch.cat([a[:1000], b[:200]]) for a, b in ((splits.train_x, splits.val_x), (splits.train_y, splits.val_y)))

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    counts = y[:1000].flatten().bincount(minlength=splits.num_classes).clamp(min=1)
    guess = (counts / counts.sum()).log().expand(*y[1000:].shape, -1)
    return Case(
        host=task.build_host,
        slot="block1",
        x=x,
        y=y,
        cut=1000,
        loss=loss,
        evaluate=loss,
        epochs=7,
        learning_rate=1e-2,
        options={"chance_loss": float(loss(guess, y[1000:])), "causal": True},
    )


def multi_label() -> Case:
    """Four properties of a digit at once, judged by the mean average precision."""
    x, digits = (torch.tensor(a) for a in load_digits(return_X_y=True))
    properties = [
        digits % 2 == 0,
        digits > 4,
        *(torch.isin(digits, torch.tensor(s)) for s in ([2, 3, 5, 7], [0, 6, 8, 9])),
    ]
    y = torch.stack(properties, 1).float()

    def evaluate(output: Tensor, y: Tensor) -> tuple[Tensor, float]:
        return F.binary_cross_entropy_with_logits(output, y), average_precision_score(y, output)

    return Case(
        host=lambda: nn.Sequential(
            nn.Conv2d(1, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        ),
        slot="1",
        x=x.float().view(-1, 1, 8, 8) / 16,
        y=y,
        cut=1200,
        loss=F.binary_cross_entropy_with_logits,
        evaluate=evaluate,
        epochs=8,
        learning_rate=1e-2,
        options={"chance_score": float(y.mean())},
    )


def segmentation() -> Case:
    """Which pixels of a noisy digit belong to its stroke, judged by the intersection over the union."""
    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:800, None] / 16

    def evaluate(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found, there = output > 0, y > 0
        return F.binary_cross_entropy_with_logits(output, y), (found & there).sum() / (found | there).sum()

    return Case(
        host=lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)),
        slot="1",
        x=images + 0.4 * torch.randn_like(images),
        y=(images > 0.4).float(),
        cut=600,
        loss=F.binary_cross_entropy_with_logits,
        evaluate=evaluate,
        epochs=7,
        learning_rate=1e-2,
    )


@pytest.mark.parametrize("make", [regression, language_model, multi_label, segmentation])
def test_what_contributes_more_than_its_rent_is_kept(make):
    case = make()
    growth, alone = case.grow(), case.grow(policy="wait")
    network, judged = growth.network, [step for step in growth.history if "FOSSILIZE" in step.decided]
    assert [slot.stage.name for slot in network.slots] == ["FOSSILIZED"]
    assert judged[-1].contributions[case.slot] > 0.02 * math.log2(1 + network.added_params / network.host_params)
    assert growth.history[-1].score > alone.history[-1].score + 0.02
    assert not any(step.rolled_back for step in growth.history)


def test_what_contributes_less_than_its_rent_is_pruned():
    growth = regression().grow(rent=2.0, policy="heuristic")
    assert not any("FOSSILIZE" in step.decided for step in growth.history)
    assert any("PRUNE" in step.decided for step in growth.history)


def test_below_a_constant_guess_seeds_are_told_apart_and_the_run_goes_on():
    growth = regression().grow(policy="heuristic")
    scores = [step.score for step in growth.history]
    assert scores[0] < -1
    assert scores[-1] > 0.2
    assert min(step.score for step in growth.history if step.contributions) < 0
    (kept,) = [step for step in growth.history if "FOSSILIZE" in step.decided]
    assert kept.contributions["1"] > 0.1


def test_a_mean_squared_error_beside_the_variance_is_worth_what_the_r2_is():
    by_score, by_loss = regression().grow(), regression_by_its_loss().grow()
    assert [step.decided for step in by_loss.history] == [step.decided for step in by_score.history]
    for one, other in zip(by_loss.history, by_score.history, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.contributions == pytest.approx(other.contributions, abs=1e-4)


def test_contributions_may_be_measured_by_the_loss_of_fewer_samples():
    case = regression_by_its_loss()
    asked = []
    case.options["contributions"] = lambda: asked.append(1) or 1.0
    growth = case.grow()
    assert sum(step.evaluations - 1 for step in growth.history) == len(asked) > 0
    assert all(value == 0 for step in growth.history for value in step.contributions.values())


@pytest.mark.parametrize(("scores", "noted"), [((-3.0, -0.5), True), ((-3.0, 0.1), False), ((0.0, 0.2), False)])
def test_the_summary_says_if_nothing_was_ever_better_than_a_guess(scores, noted):
    loop = Loop()
    for score in scores:
        loop.train()
        loop.growth.step(lambda: (1.25, score))  # noqa: B023 - called at once
    console = Console(file=io.StringIO(), width=120)
    loop.growth.summary(console)
    text = console.file.getvalue()
    assert ("never rose above 0" in text) == noted
    assert "Loss: 1.25 at step 1 → 1.25 at step 2" in text


def test_the_figure_of_a_run_below_0_shows_the_run():
    loop = Loop()
    for score in (-3.0, -0.5):
        loop.train()
        loop.growth.step(lambda: (1.25, score))  # noqa: B023 - called at once
    low, high = loop.growth.plot().axes[0].get_ylim()
    assert low <= -3 < -0.5 <= high


def test_modes_are_kept_whatever_happens_inside():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with contextlib.suppress(ZeroDivisionError), modes_kept(model):
        model.eval()
        model[1].train()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
