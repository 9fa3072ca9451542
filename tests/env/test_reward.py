"""The reward telescopes to the objective."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from episodes import linear_price, quick_task
from esper import GrowthVectorEnv, Outcome, register_objective
from esper.env.reward import OBJECTIVES, Objective, RewardConfig
from esper.evaluation import run_episodes
from esper.tamiyo.policy.rules import FixedSchedulePolicy

HOST = 1000

steps = st.lists(
    st.tuples(st.floats(0, 1), st.integers(HOST, 64 * HOST), st.booleans(), st.floats(0, 5)),
    min_size=1,
    max_size=40,
)


@given(steps, st.floats(0, 0.2), st.floats(0, 0.2), st.sampled_from(["potential", "sparse"]))
def test_rewards_of_an_episode_sum_to_J(history, rent, price, kind):
    config = RewardConfig(kind=kind, rent=rent, waste=price)
    objective = Objective(config, rent)
    rewards = [
        objective.reward(score, params, HOST, rolled_back=rolled_back, done=t == len(history) - 1, waste=waste)
        for t, (score, params, rolled_back, waste) in enumerate(history)
    ]
    score, params, _, waste = history[-1]
    size = math.log2(params / HOST)
    penalties = config.rollback_penalty * sum(rolled_back for _, _, rolled_back, _ in history)
    assert sum(rewards) == pytest.approx(score - rent * size - price * waste - penalties, abs=1e-9)


@given(steps, st.floats(0, 0.2), st.floats(0, 0.2))
def test_the_potential_pays_each_decision_what_it_changed(history, rent, price):
    """r_t = Φ_t − Φ_(t−1), Φ before the first decision 0; a penalty is paid when it falls due."""
    objective = Objective(RewardConfig(rollback_penalty=0.1, waste=price), rent)
    before, penalties = 0.0, 0.0
    for t, (score, params, rolled_back, waste) in enumerate(history):
        done = t == len(history) - 1
        penalties += 0.1 * rolled_back
        potential = score - rent * math.log2(params / HOST) - price * waste - penalties
        reward = objective.reward(score, params, HOST, rolled_back=rolled_back, done=done, waste=waste)
        assert reward == pytest.approx(potential - before, abs=1e-9)
        before = potential
    assert objective.penalty == pytest.approx(penalties)


def test_compute_is_paid_as_it_is_spent_and_the_bill_is_the_same_in_the_end():
    objective = Objective(RewardConfig(compute=0.01, rent=0.0), 0.0)
    spent = [0.0, 0.5, 2.0, 2.0]
    rewards = [
        objective.reward(0.5, HOST, HOST, rolled_back=False, done=extra is spent[-1], extra=extra) for extra in spent
    ]
    assert rewards == pytest.approx([0.5, -0.005, -0.015, 0.0])


def test_sparse_pays_only_at_the_end():
    objective = Objective(RewardConfig(kind="sparse"), 0.02)
    assert objective.reward(0.5, 2 * HOST, HOST, rolled_back=False, done=False) == 0.0
    assert objective.reward(0.6, 2 * HOST, HOST, rolled_back=False, done=True) == pytest.approx(0.58)


@pytest.mark.parametrize(
    "arguments", [{"kind": "dense"}, {"rent": -0.1}, {"rollback_penalty": -1.0}, {"waste": -1.0}, {"compute": -1.0}]
)
def test_a_bad_config_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        RewardConfig(**arguments)


# ---------------------------------------------------------------------- objectives of one's own


def test_what_a_network_is_worth_may_be_a_function_of_ones_own():
    env = GrowthVectorEnv(
        2,
        quick_task("wine", horizon=5),
        reward=RewardConfig(objective="episodes:linear_price"),
        autoreset_mode="NextStep",
    )
    for result in run_episodes(env, FixedSchedulePolicy(), [3, 4], arm="fixed"):
        added = result.added_params / result.host_params
        assert added > 0
        assert pytest.approx(result.score - added) == result.J
        assert result.test_J == pytest.approx(result.test_score - added)


def test_rewards_under_an_objective_of_ones_own_sum_to_it():
    env = GrowthVectorEnv(2, quick_task("wine", horizon=5), reward=RewardConfig(objective="episodes:linear_price"))
    policy = FixedSchedulePolicy()
    observation, _ = env.reset(seed=0)
    policy.reset(2, seed=0)
    total, done = 0.0, [False]
    while not all(done):
        observation, rewards, done, _, infos = env.step(policy.act(observation))
        total += rewards
    assert total == pytest.approx(infos["episode_metrics"]["J"])


@pytest.fixture
def registered():
    """What a test registers is taken back."""
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


@pytest.mark.usefixtures("registered")
def test_an_objective_is_registered_under_its_name_once():
    register_objective(linear_price)
    assert RewardConfig(objective="linear_price").potential(Outcome(0.9, 1100, 1000, 0.02)) == pytest.approx(0.8)
    register_objective(linear_price)  # again, as when a cell of a notebook runs again
    other = lambda outcome: outcome.score  # noqa: E731
    other.__name__ = "linear_price"
    with pytest.raises(ValueError, match="'linear_price' is taken among objectives, by linear_price of"):
        register_objective(other)
    with pytest.raises(ValueError, match="did you mean 'linear_price'"):
        RewardConfig(objective="linear_prise")


_COUNT = itertools.count()


class BestSoFar:
    """The best score that it has ever been asked about: it remembers."""

    best = 0.0

    def __call__(self, outcome):
        self.best = max(self.best, outcome.score)
        return self.best


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("potential", "said"),
    [
        (lambda outcome: outcome.score + random.random(), "for the same Outcome"),
        (lambda outcome: outcome.score - next(_COUNT), "for the same Outcome"),
        (BestSoFar(), "objective 'BestSoFar' gave .* for the same Outcome"),
        (lambda outcome: math.nan, "expected a finite number"),
        (lambda outcome: outcome.accuracy, "AttributeError: .* no attribute 'accuracy'"),
        (lambda outcome: None, "TypeError"),
    ],
    ids=["random", "counting", "remembering", "nan", "unknown", "nothing"],
)
def test_what_is_no_potential_is_refused(potential, said):
    with pytest.raises(ValueError, match=said):
        register_objective(potential)
    assert list(OBJECTIVES) == ["score_less_rent", *(name for name in OBJECTIVES if ":" in name)]


@pytest.mark.usefixtures("registered")
def test_a_potential_that_changes_its_mind_in_an_episode_is_found_at_its_end():
    price = [0.1]
    register_objective(fickle := lambda outcome: outcome.score - price[0] * outcome.params / outcome.host_params)
    objective = Objective(RewardConfig(objective=fickle.__name__), 0.0)
    objective.reward(0.5, HOST, HOST, rolled_back=False, done=False)
    price[0] = 0.2
    with pytest.raises(ValueError, match=r"gave 0.4 and later 0.3 for the same Outcome\(score=0.5"):
        objective.reward(0.6, HOST, HOST, rolled_back=False, done=True)
