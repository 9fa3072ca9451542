"""Every policy is judged on the same episodes, and on the network it leaves."""

import pytest

from episodes import quick_task
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import compare, evaluation_seeds, run_episodes
from esper.evaluation.table import MEANS, objective, to_json
from esper.tamiyo.policy.rules import FixedSchedulePolicy, RandomPolicy, WaitPolicy


@pytest.fixture
def env():
    env = GrowthVectorEnv(3, quick_task("digits", horizon=6), autoreset_mode="NextStep")
    yield env
    env.close()


def test_results_belong_to_their_seeds(env):
    seeds = [11, 12, 13]
    first = run_episodes(env, RandomPolicy(), seeds, arm="random")
    again = run_episodes(env, RandomPolicy(), seeds, arm="random")
    assert first == again
    assert [r.seed for r in first] == seeds
    for result in first:
        assert len(result.scores) == len(result.sizes) == 7
        assert len(result.ops) == 6
        assert result.scores[-1] == result.score
        assert result.sizes[-1] == result.added_params
        assert 0 <= result.test_score <= 1
        assert set(result.slots) == set(env.task.slots)


def test_the_host_alone_is_the_same_whoever_watches(env):
    waited = run_episodes(env, WaitPolicy(), [1, 2, 3], arm="host alone")
    assert all(r.added_params == 0 and pytest.approx(r.score) == r.J for r in waited)
    grown = run_episodes(env, FixedSchedulePolicy(), [1, 2, 3], arm="fixed")
    assert [r.scores[0] for r in waited] == [r.scores[0] for r in grown]
    assert all(r.added_params > 0 for r in grown)


def test_a_comparison_keeps_every_arm_and_pairs_by_seed(env):
    arms = {"host alone": WaitPolicy(), "random": RandomPolicy(), "fixed": FixedSchedulePolicy()}
    table = compare([env], arms, [1, 2, 3])
    assert [(row.task, row.arm, row.episodes) for row in table.rows(MEANS)] == [("digits", arm, 3) for arm in arms]
    data = to_json(table, "fixed")
    assert {d["other"] for d in data["differences"]} == {"host alone", "random"}
    assert len(data["episodes"]) == 9
    mean = sum(r.J for r in table.select("digits", "fixed")) / 3
    other = sum(r.J for r in table.select("digits", "random")) / 3
    assert table.difference(objective, "fixed", "random", ["digits"]).estimate == pytest.approx(mean - other)


def test_seeds_depend_on_seed_and_purpose_alone():
    test = evaluation_seeds(20, seed=0, purpose="test")
    assert test == evaluation_seeds(20, seed=0, purpose="test")
    assert not set(test) & set(evaluation_seeds(20, seed=0, purpose="validation"))
    assert not set(test) & set(evaluation_seeds(20, seed=1, purpose="test"))


def test_an_environment_that_throws_its_networks_away_is_refused(env):
    with pytest.raises(ValueError, match="NEXT_STEP"):
        run_episodes(GrowthVectorEnv(1, quick_task("digits")), WaitPolicy(), [1], arm="host alone")
    with pytest.raises(ValueError, match="one seed for each of the 3 rows, got 2"):
        run_episodes(env, WaitPolicy(), [1, 2], arm="host alone")
