"""The environment: conformance, determinism, masks, telescoping, resuming."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from episodes import flat, play, quick_task, same
from esper.actions import HEADS, Decision
from esper.env import GrowthEnv, GrowthVectorEnv, RewardConfig, Variants, find_illegal
from esper.lifecycle import IllegalMoveError, Op
from esper.observation import PROSPECT_FIELDS, RUN_FIELDS, RUN_SIZE, SLOT_FIELDS, UNKNOWN, ObservationView
from esper.tamiyo.policy.rules import FixedSchedulePolicy, RandomPolicy, WaitPolicy

several_seeds = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_make_vec_builds_it():
    env = gymnasium.make_vec(
        "esper/Growth-v0", num_envs=2, vectorization_mode="vector_entry_point", task=quick_task("digits")
    )
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert observation["features"].shape == (2, 126)
    assert same(info["action_mask"], observation["action_mask"])
    env.close()


@pytest.mark.filterwarnings("ignore:.*Box observation space")  # the checker would like symmetric, normalised boxes
def test_gymnasiums_checker_passes():
    env = gymnasium.make("esper/Growth-v0", task=quick_task("digits", horizon=4), on_illegal="wait")
    check_env(env.unwrapped)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_episodes_begin_anew_as_under_gymnasiums_own_vectorisation(make_env, mode):
    """Row by row the same observations, rewards, ends and final observations, over several episodes."""
    single = [lambda: GrowthEnv(quick_task("digits", horizon=3))] * 2
    theirs = SyncVectorEnv(single, autoreset_mode=mode)
    expected, _ = theirs.reset(seed=[7, 8])
    ours = make_env(horizon=3, autoreset_mode=mode)
    observation, _ = ours.reset(seed=[env.vector_env._rows[0].entropy for env in theirs.envs])
    assert same(observation, expected)
    policy = RandomPolicy()
    policy.reset(2, 0)
    for _ in range(9):
        action = policy.act(observation)
        expected, *outcome, expected_info = theirs.step(action)
        observation, *result, info = ours.step(action)
        assert same(observation, expected)
        for mine, other in zip(result, outcome, strict=True):
            assert np.array_equal(mine, other)
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        if "final_obs" in info:
            assert all(map(same, info["final_obs"], expected_info["final_obs"]))
            assert np.array_equal(info["final_info"]["score"], expected_info["final_info"]["score"])
    theirs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_gymnasiums_wrapper_counts_the_episodes(make_env, mode):
    env = make_env(horizon=3, autoreset_mode=mode)
    recorded = RecordEpisodeStatistics(env)
    observation, _ = recorded.reset(seed=0)
    policy = RandomPolicy()
    policy.reset(2, 0)
    seen = 0
    for _ in range(8):
        observation, *_, info = recorded.step(policy.act(observation))
        if "episode" in info:
            seen += 1
            assert info["episode"]["l"].tolist() == [3, 3]
            np.testing.assert_allclose(info["episode"]["r"], info["episode_metrics"]["J"], atol=1e-6)
    assert seen == 2


@several_seeds
@given(seed=st.integers(0, 2**31))
def test_rewards_sum_to_J_whatever_the_actions(make_env, seed):
    env = make_env(num_envs=3)
    results, _ = play(env, seed=seed, policy_seed=seed)
    total = sum(rewards for _, rewards, *_ in results)
    *_, terminated, truncated, info = results[-1]
    assert terminated.all()
    assert not truncated.any()
    np.testing.assert_allclose(total, info["episode_metrics"]["J"], atol=1e-6)
    final = info["final_obs"]
    for row in range(3):
        view = ObservationView(final[row]["features"], final[row]["blueprints"])
        np.testing.assert_allclose(total[row], view["score"] - view["rent_paid"], atol=1e-5)


@several_seeds
@given(seed=st.integers(0, 2**31))
def test_what_a_mask_allows_is_legal_and_what_it_forbids_raises(make_env, seed):
    env = make_env(num_envs=2, budget=3000)
    rng = np.random.default_rng(seed)
    policy = RandomPolicy()
    observation, _ = env.reset(seed=seed)
    policy.reset(2, seed)
    for _ in range(env.task.horizon - 1):
        action = policy.act(observation)
        for _ in range(20):
            wild = {name: rng.integers(0, n, 2) for name, n in HEADS.sizes(3).items()}
            masks = [{name: mask[row] for name, mask in observation["action_mask"].items()} for row in range(2)]
            decisions = [Decision(**{name: int(c[row]) for name, c in wild.items()}) for row in range(2)]
            if any(find_illegal(decision, mask) for decision, mask in zip(decisions, masks, strict=True)):
                before = flat(env.reports[0].masks)
                with pytest.raises(IllegalMoveError, match="not allowed now"):
                    env.step(wild)
                assert same(before, flat(env.reports[0].masks))
            else:
                action = wild
        observation, *_ = env.step(action)


KNOWN_LOW = np.array([field.low for field in RUN_FIELDS + 3 * SLOT_FIELDS])
KNOWN_HIGH = np.array([field.high for field in RUN_FIELDS + 3 * SLOT_FIELDS])


@pytest.mark.parametrize("task", ["wine", "mnist1d", "charlm", "digits"])
@settings(several_seeds, max_examples=2)
@given(seed=st.integers(0, 2**31))
def test_every_observation_is_finite_and_in_range_or_marked_unknown(make_env, task, seed):
    env = make_env(num_envs=2, task=task, budget=5000)
    results, _ = play(env, seed=seed, policy_seed=seed)
    for observation, *_ in results:
        assert env.observation_space.contains(observation)
        numbers = observation["features"]
        assert np.isfinite(numbers).all()
        assert (((numbers >= KNOWN_LOW) & (numbers <= KNOWN_HIGH)) | (numbers == UNKNOWN)).all()


def test_naming_the_slots_in_another_order_permutes_the_observation():
    rows = []
    for order in (1, -1):
        task = quick_task("digits")
        task.slots = task.slots[::order]
        env = GrowthVectorEnv(1, task)
        env.reset(seed=0)
        observation, *_ = env.step({name: np.zeros(1, dtype=np.int64) for name in HEADS.names})
        rows.append(observation["features"][0])
        env.close()
    assert np.array_equal(rows[0][:RUN_SIZE], rows[1][:RUN_SIZE])
    blocks = [row[RUN_SIZE:].reshape(3, -1) for row in rows]
    assert np.array_equal(blocks[0], blocks[1][::-1])
    assert not np.array_equal(blocks[0], blocks[1])


def test_the_same_seed_gives_the_same_run_bit_for_bit(make_env):
    first, _ = play(make_env(), seed=3)
    second, _ = play(make_env(), seed=3)
    other, _ = play(make_env(), seed=4)
    for a, b in zip(first, second, strict=True):
        assert same(a[0], b[0])
        assert np.array_equal(a[1], b[1])
    assert not same(first[0][0], other[0][0])


def test_worker_processes_change_no_bit(make_env):
    alone, _ = play(make_env(num_envs=3), seed=3)
    spread, _ = play(make_env(num_envs=3, num_workers=2), seed=3)
    for a, b in zip(alone, spread, strict=True):
        assert same(a[0], b[0])
        assert np.array_equal(a[1], b[1])


def test_rows_do_not_touch_each_other(make_env):
    wide, narrow = make_env(num_envs=3), make_env(num_envs=1)
    wide.reset(options={"episode_seeds": [5, 6, 7]})
    narrow.reset(options={"episode_seeds": [6]})
    policy = FixedSchedulePolicy()
    policy.reset(1, 0)
    random = RandomPolicy()
    random.reset(3, 0)
    wide_observation, narrow_observation = wide._observe(), narrow._observe()
    for _ in range(6):
        mine = policy.act(narrow_observation)
        others = random.act(wide_observation)
        together = {name: np.array([others[name][0], mine[name][0], others[name][2]]) for name in HEADS.names}
        wide_observation, *_ = wide.step(together)
        narrow_observation, *_ = narrow.step(mine)
        assert np.array_equal(wide_observation["features"][1], narrow_observation["features"][0])


def test_a_run_goes_on_from_its_state_bit_for_bit(make_env):
    env, other = make_env(), make_env()
    policy = RandomPolicy()
    observation, _ = env.reset(seed=2)
    policy.reset(2, 0)
    for _ in range(11):  # into the second episode
        observation, *_ = env.step(policy.act(observation))
    state = json.loads(json.dumps(env.state_dict()))
    assert same(other.load_state_dict(state), observation)
    for _ in range(8):
        action = policy.act(observation)
        observation, rewards, *_ = env.step(action)
        resumed, resumed_rewards, *_ = other.step(action)
        assert same(observation, resumed)
        assert np.array_equal(rewards, resumed_rewards)


def test_same_step_autoreset_shows_the_last_observation_and_begins_anew(make_env):
    env = make_env(horizon=3)
    results, _ = play(env, seed=0)
    observation, _, terminated, _, info = results[-1]
    assert terminated.all()
    assert info["_final_obs"].all()
    assert ObservationView(info["final_obs"][0]["features"], info["final_obs"][0]["blueprints"])["progress"] == 1.0
    assert ObservationView(observation["features"][0], observation["blueprints"][0])["progress"] == 0.0


def test_next_step_autoreset_gives_one_row_without_reward(make_env):
    env = make_env(horizon=3, autoreset_mode=AutoresetMode.NEXT_STEP)
    results, actions = play(env, seed=0)
    assert results[-1][2].all()
    assert "final_obs" not in results[-1][4]
    observation, rewards, terminated, _, _ = env.step(actions[-1])
    assert not terminated.any()
    assert not rewards.any()
    assert ObservationView(observation["features"][0], observation["blueprints"][0])["progress"] == 0.0


def test_episode_seeds_differ_between_rows_and_episodes(make_env):
    env = make_env(num_envs=3, horizon=2)
    seeds = []
    env.reset(seed=0)
    for _ in range(3):
        seeds += [episode.seed for episode in env.episodes]
        for _ in range(2):
            env.step({name: np.zeros(3, dtype=np.int64) for name in HEADS.names})
    assert len(set(seeds)) == 9


def test_an_agent_without_masks_can_wait_instead(make_env):
    env = make_env(on_illegal="wait")
    env.reset(seed=0)
    action = {name: np.zeros(2, dtype=np.int64) for name in HEADS.names} | {"op": np.array([Op.ADVANCE, Op.GERMINATE])}
    *_, info = env.step(action)
    assert info["illegal"].tolist() == [True, False]
    assert env.reports[0].reading.added_params == 0
    assert env.reports[1].reading.added_params > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "mnist2d"}, "mnist1d"),
        ({"blueprints": ("konv",)}, "konv"),
        ({"task": 3}, "name of a task.*got int"),
        ({"num_envs": 0}, "1 or more, got 0"),
        ({"num_workers": 0}, "num_workers must be 1 or more"),
        ({"autoreset_mode": "Disabled"}, "SAME_STEP or NEXT_STEP"),
        ({"autoreset_mode": "sometimes"}, "SAME_STEP or NEXT_STEP"),
        ({"on_illegal": "ignore"}, "'raise' or 'wait'"),
    ],
)
def test_a_bad_argument_gets_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        GrowthVectorEnv(**{"num_envs": 2, "task": "wine"} | arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode_seed": [1, 2]}, "unknown reset option.*'episode_seeds'"),
        ({"episode_seeds": [1]}, "expected 2 episode_seeds"),
        ({"reset_mask": [True]}, r"reset_mask of shape \[2\], got \[1\]"),
        ({"reset_mask": [True, False]}, "first reset"),
    ],
)
def test_a_bad_reset_option_gets_a_clear_error(make_env, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(task="wine").reset(options=options)


def bad_data(folder, kind):
    """The path of data that cannot be used."""
    path = folder / "data.npz"
    x, y = np.random.default_rng(0).normal(size=(200, 4)), np.arange(200) % 2
    if kind == "nan":
        x[3, 1] = np.nan
    if kind == "one class":
        y[:] = 1
    if kind != "missing":
        np.savez(path, x=x, y=y)
    if kind == "corrupt":
        path.write_bytes(path.read_bytes()[:500])
    return folder if kind == "directory" else path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "NaN or infinity in 1 of 200 samples"),
        ("one class", "of one class"),
        ("missing", "does not exist"),
        ("corrupt", r"not a readable \.npz file"),
        ("directory", r"expected IDX files .*found data\.npz"),
    ],
)
def test_bad_data_get_an_error_of_one_line_that_names_them(tmp_path, kind, message):
    path = bad_data(tmp_path, kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        gymnasium.make_vec("esper/Growth-v0", 2, vectorization_mode="vector_entry_point", task=str(path))
    assert "\n" not in str(error.value)
    assert path.stem in str(error.value)


def test_a_bad_action_gets_a_clear_error(make_env):
    env = make_env()
    action = {name: np.zeros(2, dtype=np.int64) for name in HEADS.names}
    with pytest.raises(RuntimeError, match="reset"):
        env.step(action)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="missing \\['op'\\]"):
        env.step({name: choice for name, choice in action.items() if name != "op"})
    with pytest.raises(ValueError, match="head 'tempo' takes a choice from 0 to 3"):
        env.step(action | {"tempo": np.array([0, 9])})
    with pytest.raises(ValueError, match="expected 2 choices for head 'slot'"):
        env.step(action | {"slot": np.array([0])})


@pytest.mark.parametrize("engine", ["stacked", "loop"])
@pytest.mark.parametrize("task", ["digits", "mnist1d", "breast_cancer"])
def test_hosts_of_drawn_width_and_depth_differ_in_size(engine, task):
    variants = Variants(width=(0.5, 2.0), depth=(1, 2))
    env = GrowthVectorEnv(4, task, variants=variants, engine=engine)
    env.reset(seed=0)
    sizes = [report.reading.host_params for report in env.reports]
    expected = [
        sum(p.numel() for p in env.task.build_host(width=e.width, depth=e.depth).parameters()) for e in env.episodes
    ]
    assert sizes == expected
    assert len(set(sizes)) > 1


@pytest.mark.parametrize("engine", ["stacked", "loop"])
def test_a_drawn_interval_is_how_long_a_host_trains_between_decisions(make_env, engine):
    env = make_env(num_envs=6, engine=engine, variants=Variants(interval=(0.5, 3.0)))
    observation, info = env.reset(seed=1)
    intervals = info["conditions"]["interval"]
    assert set(intervals) <= {0.5, 1.0, 1.5, 2.0, 2.5, 3.0}
    assert len(set(intervals)) > 2
    policy = WaitPolicy()
    policy.reset(6, 0)
    samples = 2 * env.task.batch_size  # a quick task trains two batches a decision
    for decision in range(1, 3):
        observation, _, _, _, info = env.step(policy.act(observation))
        assert np.array_equal(info["train_samples_seen"], decision * samples * intervals)


def test_an_interval_leaves_what_else_is_drawn_as_it_is(make_env):
    ranges = {"rent": (0.005, 0.08), "width": (0.5, 2.0), "horizon": (4, 9)}
    _, short = make_env(num_envs=4, variants=Variants(**ranges)).reset(seed=1)
    _, long = make_env(num_envs=4, variants=Variants(**ranges, interval=(3.0, 3.0))).reset(seed=1)
    for name, drawn in short["conditions"].items():
        assert np.array_equal(long["conditions"][name], [3.0] * 4 if name == "interval" else drawn), name


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_other_objective_is_what_a_run_at_that_rent_shows_and_pays(make_env, mode):
    env = make_env(num_envs=2, horizon=4, autoreset_mode=mode, variants=Variants(rent=(0.005, 0.08)))
    observation, info = env.reset(seed=3)
    policy = RandomPolicy()
    policy.reset(2, 0)
    rents, seeds = info["conditions"]["other_rent"], [episode.seed for episode in env.episodes]
    assert len({*rents, *info["conditions"]["rent"]}) == 4
    twins = []
    for rent, seed in zip(rents, seeds, strict=True):
        twin = make_env(num_envs=1, horizon=4, autoreset_mode=mode, reward=RewardConfig(rent=float(rent)))
        seen, _ = twin.reset(options={"episode_seeds": [seed]})
        twins.append(twin)
        assert np.array_equal(seen["features"][0], info["other_objective"]["features"][len(twins) - 1])
    for step in range(4):
        actions = policy.act(observation)
        observation, _, terminated, _, info = env.step(actions)
        shown = info.get("final_info", info)
        for row, twin in enumerate(twins):
            seen, reward, ended, _, theirs = twin.step(
                {head: choice[row : row + 1] for head, choice in actions.items()}
            )
            features = theirs["final_obs"][0]["features"] if "final_obs" in theirs else seen["features"][0]
            assert np.array_equal(features, shown["other_objective"]["features"][row])
            assert reward[0] == info["other_objective"]["rewards"][row]
            assert ended[0] == terminated[row] == (step == 3)


def test_there_is_no_other_objective_where_rent_is_not_drawn(make_env):
    _, info = make_env(variants=Variants(width=(0.5, 1.5))).reset(seed=3)
    assert "other_objective" not in info
    assert set(info["conditions"]["other_rent"]) == {-1.0}


def test_paired_rows_play_the_same_episodes(make_env):
    variants = Variants(rent=(0.005, 0.08), width=(0.5, 1.5), learning_rate=(0.5, 2))
    env = make_env(num_envs=3, horizon=3, paired=True, variants=variants)
    observation, _ = env.reset(seed=3)
    policy = FixedSchedulePolicy()
    policy.reset(3, 0)
    seeds = set()
    for _ in range(6):
        assert len({episode.seed for episode in env.episodes}) == 1
        assert all(np.array_equal(rows, rows[:1].repeat(3, axis=0)) for rows in flat(observation).values())
        seeds.add(env.episodes[0].seed)
        observation, *_ = env.step(policy.act(observation))
    assert len(seeds) == 2, "each episode is another one"


def test_size_flops_and_price_of_every_blueprint_that_fits_are_known():
    env = GrowthVectorEnv(2, quick_task("digits"))
    observation, _ = env.reset(seed=0)
    env.close()
    known = {field.name: observation["prospects"][..., i] != UNKNOWN for i, field in enumerate(PROSPECT_FIELDS)}
    fits = observation["prospects"][..., 0] == 1
    assert fits.any()
    for name in ("params", "flops", "rent"):
        assert np.array_equal(known[name], fits), name
    assert not known["gain"].any()
