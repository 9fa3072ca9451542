"""The reward telescopes to the objective."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.env.reward import Objective, RewardConfig

steps = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 6), st.booleans(), st.floats(0, 5)),
    min_size=1,
    max_size=40,
)


@given(steps, st.floats(0, 0.2), st.floats(0, 0.2), st.sampled_from(["potential", "sparse"]))
def test_rewards_of_an_episode_sum_to_J(history, rent, price, kind):
    config = RewardConfig(kind=kind, rent=rent, waste=price)
    objective = Objective(config, rent)
    rewards = [
        objective.reward(score, size, rolled_back=rolled_back, done=t == len(history) - 1, waste=waste)
        for t, (score, size, rolled_back, waste) in enumerate(history)
    ]
    score, size, _, waste = history[-1]
    penalties = config.rollback_penalty * sum(rolled_back for _, _, rolled_back, _ in history)
    assert sum(rewards) == pytest.approx(score - rent * size - price * waste - penalties, abs=1e-9)


@given(steps, st.floats(0, 0.2), st.floats(0, 0.2))
def test_the_potential_pays_each_decision_what_it_changed(history, rent, price):
    """r_t = Φ_t − Φ_(t−1), Φ before the first decision 0; a penalty is paid when it falls due."""
    objective = Objective(RewardConfig(rollback_penalty=0.1, waste=price), rent)
    before, penalties = 0.0, 0.0
    for t, (score, size, rolled_back, waste) in enumerate(history):
        done = t == len(history) - 1
        penalties += 0.1 * rolled_back
        potential = score - rent * size - price * waste - penalties
        reward = objective.reward(score, size, rolled_back=rolled_back, done=done, waste=waste)
        assert reward == pytest.approx(potential - before, abs=1e-9)
        before = potential
    assert objective.penalty == pytest.approx(penalties)


def test_sparse_pays_only_at_the_end():
    objective = Objective(RewardConfig(kind="sparse"), 0.02)
    assert objective.reward(0.5, 1.0, rolled_back=False, done=False) == 0.0
    assert objective.reward(0.6, 1.0, rolled_back=False, done=True) == pytest.approx(0.58)


@pytest.mark.parametrize("arguments", [{"kind": "dense"}, {"rent": -0.1}, {"rollback_penalty": -1.0}, {"waste": -1.0}])
def test_a_bad_config_is_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        RewardConfig(**arguments)
