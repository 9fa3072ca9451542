"""Baselines: always legal, and what their names say."""

import numpy as np
import pytest
import torch
from torch import nn

from episodes import play, quick_task
from esper import Growth
from esper.actions import BLUEPRINT_NAMES, Decision
from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import RewardConfig
from esper.lifecycle import Op, Stage
from esper.observation import PROSPECT_FIELDS
from esper.tamiyo.policy.registry import POLICIES, FunctionPolicy, make_policy
from esper.tamiyo.policy.rules import AuditionPolicy, FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy

FIELDS = [field.name for field in PROSPECT_FIELDS]


@pytest.fixture(params=["digits", "breast_cancer"])
def env(request):
    env = GrowthVectorEnv(3, quick_task(request.param, horizon=12), budget=6000, autoreset_mode="NextStep")
    yield env
    env.close()


@pytest.mark.parametrize("policy", [*POLICIES.values(), lambda: HeuristicPolicy(probation=1, margin=1.0)])
def test_every_baseline_is_legal_all_the_way(env, policy):
    results, _ = play(env, policy())  # an illegal action would raise
    assert results[-1][2].all()


def test_waiting_grows_nothing(env):
    play(env, WaitPolicy())
    assert all(report.reading.added_params == 0 for report in env.reports)


def test_the_fixed_schedule_fills_every_slot_and_keeps_it(env):
    play(env, FixedSchedulePolicy("conv"))
    for report in env.reports:
        assert {slot.stage for slot in report.reading.slots} == {Stage.FOSSILIZED}
        if report.reading.slots[0].kind == "image":
            assert {BLUEPRINT_NAMES[slot.blueprint] for slot in report.reading.slots} == {"conv"}


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.25, 3), (0.3, 4), (0.5, 6), (0.99, None)])
def test_a_schedule_may_begin_late(env, start, first):
    _, actions = play(env, FixedSchedulePolicy("conv", start=start))
    ops = np.array([action["op"] for action in actions])  # [T, K]
    came = np.flatnonzero((ops == Op.GERMINATE).all(axis=1)).tolist()
    assert came[:1] == ([] if first is None else [first])
    assert (ops[:first] == Op.WAIT).all()


def grown_from_half(horizon):
    """A growth in which nothing is trained."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer, example = torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(1, 4)
    policy = FixedSchedulePolicy("mlp", start=0.5)
    return Growth(model, optimizer, slots=["1"], example_input=example, policy=policy, budget=None, horizon=horizon)


def test_a_share_of_a_run_needs_its_length():
    with pytest.raises(ValueError, match="give Growth its horizon"):
        grown_from_half(None).step(lambda: (1.0, 0.5))
    with pytest.raises(ValueError, match="start: expected a share of the run from 0 to below 1, got 1"):
        FixedSchedulePolicy(start=1)


def test_growth_may_begin_late():
    growth = grown_from_half(10)
    steps = [growth.step(lambda: (1.0, 0.5)) for _ in range(10)]
    germinated = [step.decision for step in steps if "germinate" in step.decided.lower()]
    assert germinated == [5]  # five of ten intervals are over
    assert steps[3].why.words == "this schedule begins after 50% of the run"


def test_the_heuristic_keeps_nothing_that_does_not_pay(env):
    _, actions = play(env, HeuristicPolicy(probation=1, margin=1.0))
    ops = {Op(int(op)) for action in actions for op in action["op"]}
    assert Op.PRUNE in ops
    assert Op.FOSSILIZE not in ops


@pytest.mark.parametrize("task", ["digits", "breast_cancer"])
def test_the_rule_that_holds_auditions_grows_what_they_put_first(task):
    policy = AuditionPolicy(last_decisions=2)
    env = GrowthVectorEnv(
        2,
        quick_task(task, horizon=16),
        autoreset_mode="NextStep",
        auditions=policy.auditions,
        reward=RewardConfig(rent=0),
    )
    observation, _ = env.reset(seed=0)
    policy.reset(2, 0)
    grown = [0, 0]
    for _ in range(16):
        action = policy.act(observation)
        for row, op in enumerate(action["op"]):
            prospects = observation["prospects"][row]
            assert not (op == Op.GERMINATE and prospects[..., FIELDS.index("auditioning")].any())
            if op == Op.GERMINATE:
                dormant = [slot.stage is Stage.DORMANT for slot in env.reports[row].reading.slots]
                gains = prospects[dormant][..., FIELDS.index("gain_order")]
                assert (
                    prospects[action["slot"][row], action["blueprint"][row], FIELDS.index("gain_order")] == gains.max()
                )
                grown[row] += 1
        observation, *_ = env.step(action)
    env.close()
    assert min(grown) >= 1


def test_the_rule_that_holds_auditions_grows_nothing_where_rent_is_dear():
    policy = AuditionPolicy()
    task = quick_task("digits", horizon=10)
    env = GrowthVectorEnv(2, task, autoreset_mode="NextStep", auditions=policy.auditions, reward=RewardConfig(rent=9.0))
    _, actions = play(env, policy)
    env.close()
    assert not any(action["op"].any() for action in actions)


def test_the_random_policy_uses_every_op_and_depends_on_its_seed_alone(env):
    _, first = play(env, RandomPolicy(), policy_seed=1)
    _, again = play(env, RandomPolicy(), policy_seed=1)
    _, other = play(env, RandomPolicy(), policy_seed=2)
    differs = lambda a, b: any(not np.array_equal(x["op"], y["op"]) for x, y in zip(a, b, strict=True))  # noqa: E731
    assert not differs(first, again)
    assert differs(first, other)
    assert {Op(int(op)) for action in first + other for op in action["op"]} >= {Op.WAIT, Op.GERMINATE, Op.PRUNE}


def test_a_policy_by_name_function_or_object():
    assert isinstance(make_policy("heuristic"), HeuristicPolicy)
    assert isinstance(make_policy(lambda run: Decision()), FunctionPolicy)
    policy = RandomPolicy()
    assert make_policy(policy) is policy


def test_a_rule_sees_its_run(env):
    seen = []

    def rule(run):
        seen.append((run.decision, run.observation["progress"], run.allows(Op.GERMINATE, 0)))
        run.memory["note"] = run.decision
        return run.first_allowed(Op.GERMINATE) or Decision()

    play(env, make_policy(rule), steps=2)
    assert seen[:3] == [(0, 0.0, True)] * 3
    assert seen[3][0] == 1
    assert seen[3][2] is False


def test_bad_policies_get_clear_errors(env):
    with pytest.raises(ValueError, match=r"unknown policy 'heuristics'.*did you mean 'heuristic'"):
        make_policy("heuristics")
    with pytest.raises(TypeError, match="got int"):
        make_policy(3)
    with pytest.raises(TypeError, match=r"must return an esper\.actions\.Decision, got str"):
        play(env, make_policy(lambda run: "WAIT"))
    policy = WaitPolicy()
    policy.reset(2, seed=0)
    observation, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match="observations of 2 runs, got 3"):
        policy.act(observation)


# ---------------------------------------------------------------------- why


class Overheard:
    """A rule, and what is made of each of its answers."""

    auditions = None

    def __init__(self, rule, listen):
        self.rule, self.listen = rule, listen

    def reset(self, *arguments):
        self.rule.reset(*arguments)

    def act(self, observation):
        actions = self.rule.act(observation)
        self.listen(actions)
        return actions


@pytest.mark.parametrize("policy", [FixedSchedulePolicy, HeuristicPolicy, RandomPolicy, WaitPolicy])
def test_every_rule_says_why_in_words(policy):
    env = GrowthVectorEnv(2, quick_task("breast_cancer", horizon=12), budget=6000, autoreset_mode="NextStep")
    rule, said = policy(), {}

    def listen(actions):
        assert len(rule.reasons) == 2
        for op, reason in zip(actions["op"], rule.reasons, strict=True):
            said.setdefault(Op(int(op)), set()).add(reason.words)

    play(env, Overheard(rule, listen))
    env.close()
    assert all(words for reasons in said.values() for words in reasons), said


def test_a_rule_that_judges_gives_contribution_and_rent_as_the_run_has_them():
    env = GrowthVectorEnv(1, quick_task("breast_cancer", horizon=12), budget=6000, autoreset_mode="NextStep")
    rule, judged = HeuristicPolicy(probation=1), []

    def listen(actions):
        if actions["op"][0] in (Op.FOSSILIZE, Op.PRUNE):
            reading = env.reports[0].reading
            slot = reading.slots[actions["slot"][0]]
            total = reading.host_params + reading.added_params
            rent = reading.rent * np.log2(total / (total - slot.seed_params))
            judged.append((rule.reasons[0].words, slot.contribution, rent, actions["op"][0]))

    play(env, Overheard(rule, listen))
    env.close()
    assert judged
    for words, contribution, rent, op in judged:
        assert f"{100 * contribution:+.1f} points" in words
        assert words.endswith(f"its rent of {100 * rent:.1f}")
        assert ("not above" in words) == (op == Op.PRUNE) == (contribution <= rent)
