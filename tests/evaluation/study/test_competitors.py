"""Competitors keep to their compute, choose on validation data alone, and find what there is to find."""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn

from episodes import quick_task
from esper.evaluation import EpisodeResult, names
from esper.evaluation.statistics import Interval
from esper.evaluation.study import competitors
from esper.evaluation.study.architectures import Architecture, episode_of, fitting, train_from_scratch
from esper.evaluation.study.competitors import COMPETITORS, ComputeSpent, Configuration, Search, anytime
from esper.evaluation.study.verdicts import Check, Claim
from esper.evaluation.table import Table
from esper.tasks import Splits, Task

RENT = 0.02


@pytest.fixture(scope="module")
def task():
    return quick_task("wine", horizon=4)


@pytest.fixture(scope="module")
def grown(task):
    """What stands for a growth: its FLOPs are the measure, its size that of the larger hosts."""
    architecture = Architecture((("block1", "mlp", "add", 1.0), ("block2", "norm", "add", 1.0)))
    return train_from_scratch(task, episode_of(task, 7, RENT), architecture, arm=names.TAMIYO)


def compete(competitor, task, grown, budget=2.0) -> EpisodeResult:
    return competitor.compete(task, episode_of(task, grown.seed, RENT), grown, budget, arm=competitor.name)


each_competitor = pytest.mark.parametrize("competitor", COMPETITORS, ids=lambda c: c.name)


@each_competitor
@pytest.mark.parametrize("budget", [1.0, 4.0])
def test_a_competitor_spends_no_more_than_its_compute(task, grown, competitor, budget, monkeypatch):
    trainings = []
    begin = Search.begin
    monkeypatch.setattr(Search, "begin", lambda *a, **k: trainings.append(begin(*a, **k)) or trainings[-1])
    result = compete(competitor, task, grown, budget)
    trained = sum(t.run.decision * t.flops_per_decision for t in trainings)
    allowed = budget * grown.train_flops[-1]
    assert result.train_flops[-1] == trained <= allowed
    assert trained > allowed - max(t.flops_per_decision for t in trainings) * len(trainings)
    assert result.train_flops == sorted(result.train_flops)
    assert result.train_samples_seen == sum(t.run.samples_seen for t in trainings)


@each_competitor
def test_a_search_never_reads_test_data(task, grown, competitor, monkeypatch):
    def refuse(splits):
        raise AssertionError("test data are read")

    search = Search(task, episode_of(task, 7, RENT), 2 * grown.train_flops[-1])
    with monkeypatch.context() as patch:
        patch.setattr(Splits, "test_x", property(refuse), raising=False)
        patch.setattr(Splits, "test_y", property(refuse), raising=False)
        with pytest.raises(AssertionError, match="are read"):
            search.begin(Configuration(Architecture(()))).run.test_score()
        with suppress(ComputeSpent):
            competitor.strategy(search, grown)
    assert search.result("").test_score > 0


@each_competitor
def test_the_same_seed_gives_the_same_result(task, grown, competitor):
    assert compete(competitor, task, grown) == compete(competitor, task, grown)


def test_a_training_that_was_paused_ends_as_one_that_was_not(task):
    episode, architecture = episode_of(task, 7, RENT), Architecture((("block2", "mlp", "gate", 1.0),))
    search = Search(task, episode, 1e12)
    training, other = (search.begin(Configuration(architecture)) for _ in range(2))
    for decisions in (1, 2, 9):
        search.train(training, decisions)
        search.train(other, 1)
    search.train(other, 1)
    whole = search.begin(Configuration(architecture))
    search.train(whole, 4)
    assert training.run.train_losses == other.run.train_losses == whole.run.train_losses
    scratch = train_from_scratch(task, episode, architecture, arm="")
    assert training.run.scores == scratch.scores
    assert training.J == scratch.J
    assert search.spent == scratch.train_flops[-1] * 3


def test_the_best_network_on_validation_data_is_the_one_that_is_tested(task):
    # as it was then, whatever its training came to later
    search = Search(task, episode_of(task, 7, RENT), 1e12)
    training = search.begin(Configuration(Architecture(()), learning_rate=3.0))
    seen = [(training.J, training.run.test_score())]
    for _ in range(4):
        seen.append((search.train(training, 1), training.run.test_score()))
    for parameter in training.run.network.model.parameters():
        parameter.data.zero_()
    result = search.result("")
    assert (result.J, result.test_score) == max(seen, key=lambda pair: pair[0])


class Xor(Task):
    """A linear host stays at chance; a block with a nonlinearity answers all."""

    name = "xor"
    description = "whether two numbers have the same sign"
    slots = ("hidden",)
    horizon, steps_per_decision, batch_size, learning_rate = 4, 32, 32, 1e-2

    def load(self):
        x = 2 * torch.rand(768, 2, generator=torch.Generator().manual_seed(0)) - 1
        y = (x.prod(1) > 0).long()
        return Splits(*(part for i in range(3) for part in (x[i::3], y[i::3])))

    def build_host(self, width=1.0, depth=1):
        return nn.Sequential(OrderedDict(hidden=nn.Linear(2, 8), head=nn.Linear(8, 2)))


@pytest.mark.parametrize("competitor", COMPETITORS[:3], ids=lambda c: c.name)
def test_a_search_finds_the_one_good_block(competitor, monkeypatch):
    linear = ("lora", "lora_large")
    sizes = {kind: size for kind, size in fitting(Xor())["hidden"].items() if kind in (*linear, "mlp")}
    monkeypatch.setattr(competitors, "fitting", lambda task: {"hidden": sizes})
    grown = train_from_scratch(
        Xor(), episode_of(Xor(), 7, RENT), Architecture((("hidden", "mlp", "add", 1.0),)), arm=""
    )
    found = compete(competitor, Xor(), grown, budget=8.0)
    assert len(sizes) == 3
    assert [kind for _, kind, _, _ in found.architecture] == ["mlp"]
    assert found.test_score > 0.8


def test_larger_hosts_are_as_large_as_the_grown_network_and_smaller_ones_no_larger(task, grown):
    little, grown = replace(grown, added_params=20), replace(grown, added_params=900)
    wide, deep, small = (
        compete(next(c for c in COMPETITORS if c.name == name), task, rival)
        for name, rival in ((names.WIDER_HOST, grown), (names.DEEPER_HOST, grown), (names.SMALLER_STATIC, little))
    )
    for result in (wide, deep):
        assert result.host_params == grown.host_params
        assert abs(result.total_params - grown.total_params) < 0.1 * grown.total_params
        assert result.architecture == []
        assert result.score - result.J > RENT / 2
    assert small.added_params <= little.added_params


def test_a_host_without_width_is_an_obstacle(task, monkeypatch):
    build = type(task).build_host
    monkeypatch.setattr(type(task), "build_host", lambda self, width=1.0, depth=1: build(self))
    obstacles = {c.name: c.obstacle(task) for c in COMPETITORS}
    assert obstacles[names.WIDER_HOST] == "its host has no width to choose"
    assert obstacles[names.DEEPER_HOST] == "its host has no depth to choose"
    assert obstacles[names.RANDOM_SEARCH] is None


def test_what_was_not_run_is_not_tested():
    nothing, shown, missed = (Check("", i, 0.0) for i in (None, Interval(2, 1, 3, 5), Interval(0, -1, 1, 5)))
    verdict = lambda *checks: Claim("", checks).verdict  # noqa: E731
    assert verdict() == verdict(nothing) == "not tested"
    assert verdict(shown, nothing) == "holds in part"
    assert verdict(shown) == "holds"
    assert verdict(missed, nothing) == "fails"
    assert verdict(Check("", Interval(2, 1, 3, 4), 0.0)) == "not tested", "of four values an interval shows nothing"


def test_anytime_curves_have_what_was_run(task, grown):
    arm = names.at_budget(names.RANDOM_SEARCH, 2)
    random = next(c for c in COMPETITORS if c.name == names.RANDOM_SEARCH)
    results = [compete(random, task, replace(grown, seed=seed)) for seed in (7, 8)]
    table = Table({("wine", names.TAMIYO): [grown, grown], ("wine", arm): results})
    (point,) = anytime(table, (1, 2))
    assert (point.task, point.competitor, point.budget) == ("wine", names.RANDOM_SEARCH, 2)
    assert point.test_J.estimate == pytest.approx((results[0].test_J + results[1].test_J) / 2)
