"""What a run costs, and what of it is wasted."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from episodes import quick_task
from esper.auditions import Auditions
from esper.env import GrowthVectorEnv, RewardConfig
from esper.env.engine.run import ATTRIBUTION_SAMPLES
from esper.env.episode import NO_VARIANTS
from esper.env.flops import ComputeMeter, training_flops
from esper.evaluation.episodes import run_episodes
from esper.network.blueprints import count_flops
from esper.network.growing_network import GrowingNetwork
from esper.tamiyo.policy.rules import AuditionPolicy, FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy


@pytest.fixture
def task():
    return quick_task("mnist1d", horizon=8)


@pytest.fixture
def episode(task):
    return NO_VARIANTS.draw(task, 0, rent=0.02, budget=None, host_params=0)


def flops_of_host(task):
    """Of a forward pass over one sample."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.build_host()(task.splits().train_x[: task.batch_size])
    return counter.get_total_flops() // task.batch_size


def flops_of_seed(task, slot, blueprint):
    network = GrowingNetwork(task.build_host(), task.slots, task.splits().val_x[:1])
    return count_flops(blueprint, next(s.spec for s in network.slots if s.name == slot))


def test_compute_is_what_the_flop_counter_sees(task, episode):
    dormant = {name: [("DORMANT", None, 0.0)] * 2 for name in task.slots}
    a_step = 3.0 * task.batch_size * flops_of_host(task)
    assert training_flops(task, episode, dormant) == [0.0, task.steps_per_decision * a_step]
    twice = training_flops(task, dataclasses.replace(episode, interval=2.0), dormant)
    assert twice == [0.0, 2 * task.steps_per_decision * a_step]
    grown = {**dormant, task.slots[0]: [("DORMANT", None, 0.0), ("TRAINING", "conv", 0.0)]}
    network = flops_of_host(task) + flops_of_seed(task, task.slots[0], "conv")
    trained = 3 * task.steps_per_decision * task.batch_size * network
    assert training_flops(task, episode, grown)[1] == trained + ATTRIBUTION_SAMPLES * network


def test_nothing_is_wasted_on_a_host_alone(task, episode):
    meter = ComputeMeter(task, episode)
    for _ in range(task.horizon):
        meter.record(dict.fromkeys(task.slots, ("DORMANT", None)))
    assert meter.wasted == 0
    assert meter.total == meter.host_alone


@pytest.mark.parametrize(("end", "kept"), [("FOSSILIZED", "conv"), ("EMBARGOED", None)])
def test_a_seed_is_wasted_once_it_is_gone_and_its_measuring_in_any_case(task, episode, end, kept):
    slot = task.slots[1]
    others = {name: ("DORMANT", None) for name in task.slots if name != slot}
    meter = ComputeMeter(task, episode)
    for stage in ("TRAINING", "BLENDING", "HOLDING"):
        meter.record({**others, slot: (stage, "conv")})
    seed = flops_of_seed(task, slot, "conv")
    measuring = (1 + 2 + 1) * ATTRIBUTION_SAMPLES * (flops_of_host(task) + seed)
    assert meter.wasted == measuring
    meter.record({**others, slot: (end, kept)})
    training = 3 * 3 * task.steps_per_decision * task.batch_size * seed
    assert meter.wasted == measuring + (0 if kept else training)
    meter.record({**others, slot: (end, kept)})
    assert meter.wasted == measuring + (0 if kept else training)


@pytest.mark.parametrize("policy", [WaitPolicy, FixedSchedulePolicy, HeuristicPolicy, RandomPolicy])
def test_a_run_pays_for_what_it_wasted_and_for_nothing_else(make_env, task, policy):
    """J at a price is J without less the price of what the run's own history says was wasted."""
    results = []
    for price in (0.0, 0.5):
        env = make_env(3, "mnist1d", reward=RewardConfig(waste=price), autoreset_mode="NextStep")
        results.append(run_episodes(env, policy(), [5, 6, 7], arm="any"))
    wasted = []
    for free, paid in zip(*results, strict=True):
        assert free.slots == paid.slots
        meter = ComputeMeter(env.task, env.episodes[0])
        for decision in range(1, env.task.horizon + 1):
            meter.record({name: history[decision][:2] for name, history in free.slots.items()})
        wasted.append(meter.wasted / meter.host_alone)
        assert pytest.approx(free.J - 0.5 * wasted[-1], abs=1e-12) == paid.J
    assert (np.array(wasted) > 0).all() == (policy is not WaitPolicy)


@pytest.mark.parametrize("policy", [WaitPolicy, FixedSchedulePolicy, AuditionPolicy])
def test_at_a_price_on_compute_a_run_pays_for_all_that_the_host_alone_would_not_have_taken(make_env, task, policy):
    results = []
    for price in (0.0, 0.1):
        env = make_env(2, "mnist1d", reward=RewardConfig(compute=price), autoreset_mode="NextStep", horizon=8)
        results.append(run_episodes(env, policy(), [5, 6], arm="any"))
    alone = ComputeMeter(env.task, env.episodes[0]).host_alone
    for free, paid in zip(*results, strict=True):
        extra = free.train_flops[-1] / alone - 1
        assert (extra > 0) == (policy is not WaitPolicy)
        assert pytest.approx(free.J - 0.1 * extra, abs=1e-12) == paid.J


def test_what_was_wasted_before_a_run_is_resumed_is_not_forgotten(make_env):
    one, other = (make_env(2, horizon=6, reward=RewardConfig(waste=0.5), autoreset_mode="NextStep") for _ in "ab")
    policy = RandomPolicy()
    policy.reset(2, 0)
    observation, _ = one.reset(seed=4)
    for decision in range(6):
        if decision == 3:
            other.load_state_dict(one.state_dict())
        actions = policy.act(observation)
        observation, rewards, *_ = one.step(actions)
        if decision >= 3:
            assert other.step(actions)[1].tolist() == rewards.tolist()


def test_candidates_are_on_the_bill_for_as_long_as_they_train_and_as_wasted(task, episode):
    alone, auditioning = ComputeMeter(task, episode), ComputeMeter(task, episode)
    empty = dict.fromkeys(task.slots, ("DORMANT", None))
    alone.record(empty)
    auditioning.record(empty, {task.slots[0]: ["mlp", "conv"]})
    candidates = sum(flops_of_seed(task, task.slots[0], name) for name in ("mlp", "conv"))
    samples = task.steps_per_decision * task.batch_size
    evaluations = ATTRIBUTION_SAMPLES * (2 * flops_of_host(task) + candidates)
    assert auditioning.wasted == auditioning.total - alone.total == 3 * samples * candidates + evaluations
    assert alone.wasted == 0


def test_the_environment_puts_auditions_on_the_bill(task):
    costs = []
    for auditions in (None, Auditions(decisions=1, blueprints=("mlp",))):
        env, policy = GrowthVectorEnv(1, task, autoreset_mode="NextStep"), WaitPolicy()
        policy.auditions = auditions
        (result,) = run_episodes(env, policy, [1], arm="wait")
        costs.append(result.train_flops)
        env.close()
    before, after = costs
    slots = [flops_of_seed(task, slot, "mlp") for slot in task.slots]
    samples = task.steps_per_decision * task.batch_size
    evaluations = ATTRIBUTION_SAMPLES * (len(slots) * flops_of_host(task) + sum(slots))
    assert after[1] == before[1]  # the first interval is the host's alone
    assert after[2] - before[2] == after[-1] - before[-1] == 3 * samples * sum(slots) + evaluations
