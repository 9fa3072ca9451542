"""Whatever breaks in one host of an environment is noticed, taken back and charged; its neighbours do not feel it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from episodes import same
from esper.actions import Decision
from esper.auditions import Auditions
from esper.env import GrowthVectorEnv
from esper.lifecycle import IllegalMoveError, Op, Stage
from esper.tasks import Splits, Task

UNSEEN = 5
"""The token that validation data hold and training data do not."""


class Codes(Task):
    """Classify four tokens by their sum."""

    name = "codes"
    description = "four tokens and their sum"
    slots = ("first", "second")
    horizon = 12
    steps_per_decision = 2
    batch_size = 16
    damaged = False
    """Whether a new host is born with a NaN."""

    def load(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(0, UNSEEN, (160, 4), generator=generator)
        y, train = x.sum(1) % 3, slice(96)
        x[96:, 0] = UNSEEN
        return Splits(x[train], y[train], x[96:128], y[96:128], x[128:], y[128:])

    def build_host(self, width=1.0, depth=1):
        parts = OrderedDict(
            tokens=nn.Embedding(UNSEEN + 1, 4),
            flat=nn.Flatten(),
            first=nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU()),
            second=nn.Sequential(nn.Linear(8, 8), nn.ReLU()),
            head=nn.Linear(8, 3),
        )
        host = nn.Sequential(parts)
        if self.damaged:
            host.head.bias.data[0] = math.nan
        return host


ENGINES = (pytest.param("loop", marks=pytest.mark.slow), "stacked")
"""In the loop the hosts are apart anyway."""

HIT = 1
"""The row that a fault hits, of three."""

GROW = Decision(Op.GERMINATE, slot=0, blueprint="mlp")
BLEND = Decision(Op.ADVANCE, slot=0, tempo="slow")
SWITCH = Decision(Op.ADVANCE, slot=0, tempo="instant")
KEEP = Decision(Op.FOSSILIZE, slot=0)
WAIT = Decision()


@torch.no_grad()
def write(tensor, value):
    tensor.view(-1)[0] = value


def in_host(name, value):
    return lambda run: write(run.network.model.state_dict()[name], value)


def in_seed(value):
    return lambda run: write(next(run.network.slots[0].seed.parameters()), value)


def in_unseen_token(value):
    return lambda run: write(run.network.model.tokens.weight[UNSEEN], value)


def in_optimizer(run):
    """Adam's second moment of the first weight of the host."""
    if hasattr(run, "host"):  # of a stack
        write(run.host.pool.second_moments[run.host.member.position], math.nan)
    else:
        write(run.optimizer.state[next(run.network.model.parameters())]["exp_avg_sq"], math.nan)


def at_learning_rate(value):
    def spike(run):
        before, run.episode = run.episode, replace(run.episode, learning_rate=value)
        return lambda: setattr(run, "episode", before)

    return spike


class Fault(NamedTuple):
    inject: Callable
    """Breaks a run; may return what ends a fault that would last."""
    before: tuple[Decision, ...] = (WAIT,)
    """What every row has decided before."""
    stage: Stage = Stage.DORMANT
    """Of the first slot of the row that was hit, afterwards."""


FAULTS = {
    "a weight of the host is no number": Fault(in_host("second.0.weight", math.nan)),
    "a weight of the host is infinite": Fault(in_host("second.0.weight", math.inf)),
    "a weight of the host is huge": Fault(in_host("head.bias", 1e6)),
    "a weight of the host overflows": Fault(in_host("head.bias", 3e38)),
    "a weight that only validation data touch is no number": Fault(in_unseen_token(math.nan)),
    "a weight that only validation data touch overflows": Fault(in_unseen_token(3e38)),
    "a running mean is no number": Fault(in_host("first.1.running_mean", math.nan)),
    "a running variance is negative": Fault(in_host("first.1.running_var", -9.0)),
    "the state of the optimizer is no number": Fault(in_optimizer),
    "the learning rate is huge": Fault(at_learning_rate(1e9)),
    "the learning rate is no number": Fault(at_learning_rate(math.nan)),
    "a seed in isolation is no number": Fault(in_seed(math.nan), (WAIT, GROW, WAIT), Stage.EMBARGOED),
    "a seed in isolation is infinite": Fault(in_seed(math.inf), (WAIT, GROW, WAIT), Stage.EMBARGOED),
    "a blending seed is no number": Fault(in_seed(math.nan), (WAIT, GROW, BLEND), Stage.EMBARGOED),
    "a blending seed overflows": Fault(in_seed(3e38), (WAIT, GROW, BLEND), Stage.EMBARGOED),
    "a blended seed is no number": Fault(in_seed(math.nan), (WAIT, GROW, SWITCH, WAIT), Stage.HOLDING),
    "a seed kept for good is no number": Fault(in_seed(math.nan), (WAIT, GROW, SWITCH, WAIT, KEEP), Stage.FOSSILIZED),
}  # fmt: skip


def environment(engine, **options):
    env = GrowthVectorEnv(3, Codes(), engine=engine, **options)
    env.reset(seed=3)
    return env


def step(env, decision=WAIT):
    return env.step({head: np.full(3, choice) for head, choice in decision.to_mapping().items()})


def neighbours(result):
    """What the rows that were not hit show and get."""
    observation, rewards, *_, info = result
    rows = [row for row in range(3) if row != HIT]
    pick = lambda tree: {k: pick(v) for k, v in tree.items()} if isinstance(tree, dict) else tree[rows]  # noqa: E731
    return pick({"observation": observation, "rewards": rewards, "score": info["score"]})


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        pytest.param(kind, engine, marks=[pytest.mark.slow] * (engine == "loop" and "validation" not in kind))
        for kind in FAULTS
        for engine in ("loop", "stacked")
    ],
)
def test_a_fault_in_one_host_is_taken_back_and_charged_and_its_neighbours_do_not_feel_it(kind, engine):
    fault = FAULTS[kind]
    calm, hit = environment(engine), environment(engine)
    for decision in fault.before:
        assert same(step(calm, decision)[0], step(hit, decision)[0])
    run, penalty = hit.engine.runs[HIT], hit.reward_config.rollback_penalty
    end = fault.inject(run)
    expected, result = step(calm), step(hit)
    assert same(neighbours(result), neighbours(expected))
    assert [report.reading.rolled_back for report in hit.reports] == [row == HIT for row in range(3)]
    assert hit._rows[HIT].objective.penalty == pytest.approx(penalty)
    assert run.network.slots[0].stage is fault.stage
    if end is not None:
        end()
    for _ in range(2):
        assert np.isfinite(result[0]["features"]).all()
        assert np.isfinite(result[1]).all()
        assert np.isfinite(hit.reports[HIT].reading.val_losses).all()
        assert np.isfinite(hit.test_scores()).all()
        expected, result = step(calm), step(hit)
        assert same(neighbours(result), neighbours(expected))
        assert not any(report.reading.rolled_back for report in hit.reports)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_candidate_that_is_no_number_is_worth_nothing_and_disturbs_nobody(engine):
    calm, hit = (environment(engine, auditions=Auditions(decisions=6)) for _ in range(2))
    for env in (calm, hit):
        step(env)
        step(env)
    candidates = hit.engine.runs[HIT].network.slots[0].nursery.seeds
    broken = next(iter(candidates))
    write(next(candidates[broken].parameters()), math.nan)
    for _ in range(2):
        assert same(neighbours(step(hit)), neighbours(step(calm)))
        ours, theirs = (env.reports[HIT].reading for env in (hit, calm))
        assert ours.scores == theirs.scores
        found, expected = (reading.slots[0].auditioned for reading in (ours, theirs))
        assert found[broken].gain == min(result.gain for result in found.values()) < 0
        assert {b: r for b, r in found.items() if b != broken} == {b: r for b, r in expected.items() if b != broken}


def wrong_choice(actions):
    actions["op"][HIT] = int(Op.PRUNE)


def no_such_choice(actions):
    actions["op"][HIT] = 99


def no_number(actions):
    actions["op"] = np.array([0.0, math.nan, 0.0])


def no_head(actions):
    del actions["blueprint"]


def too_few(actions):
    actions["slot"] = actions["slot"][:2]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("spoil", [wrong_choice, no_such_choice, no_number, no_head, too_few])
def test_an_action_that_cannot_be_is_refused_and_nobody_is_touched(spoil, engine):
    calm, hit = environment(engine), environment(engine)
    actions = {head: np.zeros(3, dtype=int) for head in hit.action_space}
    spoil(actions)
    with pytest.raises((ValueError, IllegalMoveError), match=r"environment 1|head"):
        hit.step(actions)
    assert same(step(hit)[0], step(calm)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_host_that_is_born_broken_is_refused_by_task_and_episode(engine):
    env = environment(engine)
    env.task.damaged = True
    with pytest.raises(ValueError, match=r"task 'codes', episode 7: expected a finite loss .* check the task's data"):
        env.reset(options={"episode_seeds": [7, 8, 9]})
