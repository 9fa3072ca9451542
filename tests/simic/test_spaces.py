"""Every supported space in and out, and clear words for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.heads import Head, HeadTable
from esper.simic import TrainConfig, evaluate, load_bundle, train
from esper.simic.spaces import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    EnvironmentAdapter,
    ObservationOutsideSpaceWarning,
    autoreset_mode,
    declared_heads,
    heads_of,
    make_envs,
)


class Shown(gym.Env):
    """Shows a random element of its space, and remembers what was done to it."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, info: dict | None = None) -> None:
        self.observation_space, self.action_space, self.info = observation_space, action_space, info or {}
        self.done: list[Any] = []

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), self.info

    def step(self, action):
        assert self.action_space.contains(action), action
        self.done.append(action)
        return self.observation_space.sample(), 0.0, False, True, self.info


def vector(observation_space: spaces.Space, action_space: spaces.Space, num_envs: int = 3, **options: Any) -> VectorEnv:
    return SyncVectorEnv(
        [lambda: Shown(observation_space, action_space, **options)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )


BOX = spaces.Box(-1, 1, (4,))
TWO = spaces.Discrete(2)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (BOX, 4),
        (spaces.Box(0, 255, (2, 3), np.uint8), 6),
        (spaces.Discrete(5, start=-2), 5),
        (spaces.MultiBinary((2, 2)), 4),
        (spaces.MultiDiscrete([3, 4], start=[1, 2]), 7),
        (spaces.Dict({"b": BOX, "a": spaces.Discrete(3), "c": spaces.Box(-1, 1, ())}), 8),
    ],
)
def test_features_are_the_flattened_observation(space: spaces.Space, size: int) -> None:
    """As Gymnasium itself flattens it."""
    envs = vector(space, TWO)
    adapter = EnvironmentAdapter(envs)
    assert adapter.state_dim == size
    observation, infos = envs.reset(seed=1)
    adapter.encode(observation, infos)
    inputs = adapter.encode(observation, infos)  # again: nothing is used up
    rows = list(gym.vector.utils.iterate(envs.observation_space, observation))
    expected = np.stack([spaces.flatten(space, row) for row in rows])
    torch.testing.assert_close(inputs.features, torch.from_numpy(expected.astype(np.float32)))
    assert inputs.blueprint_indices is None
    assert inputs.masks == {"action": None}


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(
        st.builds(spaces.Discrete, st.integers(1, 5), start=st.integers(-3, 3)),
        st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2)), min_size=1, max_size=3).map(
            lambda entries: spaces.MultiDiscrete([n for n, _ in entries], start=[start for _, start in entries])
        ),
        st.dictionaries(st.sampled_from("abc"), st.builds(spaces.Discrete, st.integers(1, 4)), min_size=1).map(
            spaces.Dict
        ),
    ),
    st.integers(0, 1000),
)
def test_choices_arrive_as_actions_of_the_space(space: spaces.Space, seed: int) -> None:
    """Any choice within the heads is an action of the space, and different choices are different actions."""
    envs = vector(BOX, space, num_envs=4)
    adapter = EnvironmentAdapter(envs)
    random = np.random.default_rng(seed)
    envs.reset()
    choices = {name: torch.from_numpy(random.integers(n, size=4)) for name, n in adapter.sizes.items()}
    actions = adapter.decode(choices)
    assert envs.action_space.contains(actions)
    envs.step(actions)
    done = [str(env.unwrapped.done[0]) for env in envs.envs]
    rows = list(zip(*[c.tolist() for c in choices.values()], strict=True))
    assert len(set(done)) == len(set(rows))


def test_heads_of_each_space() -> None:
    assert heads_of(spaces.Discrete(4)).sizes(0) == {"action": 4}
    assert heads_of(spaces.MultiDiscrete([2, 3])).sizes(0) == {"action_0": 2, "action_1": 3}
    assert heads_of(spaces.Dict({"x": TWO, "y": spaces.Discrete(3)})).sizes(0) == {"x": 2, "y": 3}


def test_an_environment_may_declare_its_heads() -> None:
    tree = HeadTable([Head("x", 2), Head("y", 3, parent="x", used_when={"x": (1,)})])
    envs = vector(BOX, spaces.Dict({"x": TWO, "y": spaces.Discrete(3)}))
    envs.metadata = {**envs.metadata, "heads": tree.to_json()}
    assert declared_heads(envs) == tree
    assert EnvironmentAdapter(envs).heads == tree


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"heads \{'x': 3\} .* do not fit the action space"):
        EnvironmentAdapter(vector(BOX, TWO), HeadTable([Head("x", 3)]))
    named = spaces.Dict({"x": TWO, "y": TWO})
    with pytest.raises(ValueError, match="do not fit"):
        EnvironmentAdapter(vector(BOX, named), HeadTable([Head("x", 2), Head("z", 2)]))


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (BOX, spaces.Text(3), r"action 'action': unsupported space Text\(.*supported actions are Discrete, .*Tuple\."),
        (
            BOX,
            spaces.Dict({"x": spaces.Dict({"y": spaces.Graph(BOX, None)})}),
            r"action 'x/y': unsupported space Graph",
        ),
        (
            BOX,
            spaces.Box(-np.inf, 1, (2,)),
            r"finite bounds, got Box\(.*number 0 lies between -inf and 1.0; say within",
        ),
        (BOX, spaces.Box(0, 9, (2,), np.int64), r"expected a Box of floating point numbers, got Box\(.*MultiDiscrete"),
        (
            spaces.Box(0, 1, (3, 9, 3)),
            TWO,
            r"'observation': cannot tell whether the channels of Box\(.*3 of each; give",
        ),
        (spaces.Box(0, 1, (2,) * 5), TWO, "'observation': a Box of 5 dimensions is neither features nor an image"),
        (spaces.Discrete(2**23), TWO, "8388608 choices, at most 4194304 can be embedded; write them as several"),
        (
            spaces.Dict({"words": spaces.Text(5)}),
            TWO,
            r"observation 'words': unsupported space Text.*Encode it as numbers",
        ),
        (spaces.Tuple([BOX, spaces.Sequence(BOX)]), TWO, "observation '1': unsupported space Sequence"),
        (spaces.Dict({"action_mask": spaces.MultiBinary(2)}), TWO, "expected an entry besides 'action_mask'"),
        (spaces.Dict({"o": BOX, "blueprints": BOX.__class__(-1, 1, (2, 2))}), TWO, "'blueprints': expected a vector"),
    ],
)
def test_what_is_not_supported_is_said(observation: spaces.Space, action: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvironmentAdapter(vector(observation, action))


def test_environments_must_say_how_they_begin_new_episodes() -> None:
    envs = vector(BOX, TWO)
    assert autoreset_mode(envs) is AutoresetMode.SAME_STEP
    envs.metadata = {}
    with pytest.raises(ValueError, match=r"metadata\['autoreset_mode'\] .* got None"):
        autoreset_mode(envs)


# ---------------------------------------------------------------------- bad observations

SEVERAL = spaces.Dict(
    {
        "box": BOX,
        "card": spaces.Discrete(3, start=1),
        "dice": spaces.MultiDiscrete([2, 6], start=[0, 1]),
        "lamps": spaces.MultiBinary(2),
    }
)


def good() -> dict[str, np.ndarray]:
    """What three environments may show of ``SEVERAL``."""
    return {"box": np.zeros((3, 4)), "card": np.ones(3, int), "dice": np.ones((3, 2), int), "lamps": np.ones((3, 2))}


@settings(deadline=None)
@given(row=st.integers(0, 2), column=st.integers(0, 3), value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_numbers_that_are_not_finite_are_named(row: int, column: int, value: float) -> None:
    observation = good()
    observation["box"][row, column] = value
    says = rf"observation 'box' of environment {row} is not finite \({value} at number {column}\)"
    with pytest.raises(ValueError, match=says):
        EnvironmentAdapter(vector(SEVERAL, TWO)).encode(observation, {})


@settings(deadline=None)
@given(key=st.sampled_from(list(SEVERAL)), shape=st.lists(st.integers(0, 5), max_size=3))
def test_observations_of_another_shape_are_named(key: str, shape: list[int]) -> None:
    adapter, observation = EnvironmentAdapter(vector(SEVERAL, TWO)), good()
    if tuple(shape) != observation[key].shape:
        with pytest.raises(ValueError, match=f"observation '{key}': expected numbers of shape .3,.*, got"):
            adapter.encode(observation | {key: np.ones(shape, int)}, {})


@pytest.mark.parametrize("key", list(SEVERAL))
def test_observations_of_another_type_or_missing_are_named(key: str) -> None:
    adapter, observation = EnvironmentAdapter(vector(SEVERAL, TWO)), good()
    for dtype in (str, object, complex):
        with pytest.raises(ValueError, match=f"observation '{key}': expected numbers of shape"):
            adapter.encode(observation | {key: observation[key].astype(dtype)}, {})
    del observation[key]
    with pytest.raises(ValueError, match=rf"expected an observation with the entries .*, without \['{key}'\]"):
        adapter.encode(observation, {})


@settings(deadline=None)
@given(key=st.sampled_from(["card", "dice"]), row=st.integers(0, 2), choice=st.integers(-9, 9))
def test_choices_outside_of_their_space_are_named(key: str, row: int, choice: int) -> None:
    adapter, observation = EnvironmentAdapter(vector(SEVERAL, TWO)), good()
    observation[key][row, ...] = choice
    if not SEVERAL[key].contains(observation[key][row]):
        with pytest.raises(ValueError, match=f"observation '{key}' of environment {row} is outside of its space"):
            adapter.encode(observation, {})


# ---------------------------------------------------------------------- masks


def masked(mask_space: spaces.Space, action: spaces.Space) -> VectorEnv:
    return vector(spaces.Dict({"action_mask": mask_space, "observation": BOX}), action)


def encoded_masks(envs: VectorEnv, **options: Any) -> dict[str, torch.Tensor]:
    adapter = EnvironmentAdapter(envs)
    observation, infos = envs.reset(seed=0)
    masks = adapter.encode(observation, infos, **options).masks
    return {name: mask for name, mask in masks.items() if mask is not None}


def test_a_mask_in_the_observation_is_no_feature() -> None:
    envs = masked(spaces.MultiBinary(2), TWO)
    assert EnvironmentAdapter(envs).state_dim == 4
    (mask,) = encoded_masks(envs).values()
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 2)


def test_masks_of_several_heads_come_by_name_or_one_after_the_other() -> None:
    by_name = spaces.Dict({"x": spaces.MultiBinary(2), "y": spaces.MultiBinary(3)})
    masks = encoded_masks(masked(by_name, spaces.Dict({"x": TWO, "y": spaces.Discrete(3)})))
    assert {name: tuple(m.shape) for name, m in masks.items()} == {"x": (3, 2), "y": (3, 3)}
    masks = encoded_masks(masked(spaces.MultiBinary(5), spaces.MultiDiscrete([2, 3])))
    assert {name: tuple(m.shape) for name, m in masks.items()} == {"action_0": (3, 2), "action_1": (3, 3)}


def test_the_mask_in_infos_is_used_where_the_observation_has_none() -> None:
    envs = vector(BOX, TWO, info={"action_mask": np.array([1, 0], np.int8)})
    assert encoded_masks(envs)["action"].tolist() == [[True, False]] * 3
    by_name = vector(BOX, spaces.Dict({"x": TWO, "y": TWO}), info={"action_mask": {"x": np.array([True, False])}})
    assert {name: m.tolist() for name, m in encoded_masks(by_name).items()} == {"x": [[True, False]] * 3}


def test_the_mask_in_the_observation_comes_before_the_one_in_infos() -> None:
    adapter = EnvironmentAdapter(masked(spaces.MultiBinary(2), TWO))
    observation = {"action_mask": np.tile([0, 1], (3, 1)), "observation": np.zeros((3, 4), np.float32)}
    masks = adapter.encode(observation, {"action_mask": np.tile([1, 0], (3, 1))}).masks
    assert masks["action"].tolist() == [[False, True]] * 3


def test_infos_must_always_hold_the_mask_or_never() -> None:
    envs = vector(BOX, TWO, info={"action_mask": np.array([1, 0], np.int8)})
    adapter = EnvironmentAdapter(envs)
    observation, infos = envs.reset()
    adapter.encode(observation, infos)
    with pytest.raises(ValueError, match=r"expected infos\['action_mask'\] on every reset and step"):
        adapter.encode(observation, {})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 3), bool), r"mask of head 'x': expected .* \(3, 2\), got bool \(3, 3\)"),
        (np.ones((3, 2)), "mask of head 'x': expected booleans .* got float64"),
    ],
)
def test_masks_of_the_wrong_shape_or_type_are_refused(mask: np.ndarray, message: str) -> None:
    adapter = EnvironmentAdapter(vector(BOX, spaces.Dict({"x": TWO})))
    with pytest.raises(ValueError, match=message):
        adapter.encode(np.zeros((3, 4), np.float32), {"action_mask": {"x": mask}})


def test_masks_of_unknown_heads_are_refused() -> None:
    adapter = EnvironmentAdapter(vector(BOX, spaces.Dict({"x": TWO})))
    with pytest.raises(ValueError, match=r"unknown heads \['z'\]; the heads are \['x'\]"):
        adapter.encode(np.zeros((3, 4), np.float32), {"action_mask": {"z": np.ones((3, 2), bool)}})


def test_rows_to_ignore_become_zeros_that_allow_everything() -> None:
    envs = masked(spaces.MultiBinary(2), TWO)
    adapter = EnvironmentAdapter(envs)
    observation, infos = envs.reset(seed=0)
    observation["observation"][1] = np.nan
    observation["action_mask"][1] = 0
    inputs = adapter.encode(observation, infos, ignore=np.array([False, True, False]))
    assert not inputs.features[1].any()
    assert inputs.masks["action"][1].all()


@pytest.mark.parametrize("batched", [False, True])
def test_final_observations_are_read_for_the_rows_asked_for(batched: bool) -> None:
    """One object per environment, as Gymnasium gives them, or arrays over all environments."""
    envs = masked(spaces.MultiBinary(2), TWO)
    adapter = EnvironmentAdapter(envs)
    shown = [
        {"action_mask": np.array([1, k % 2], np.int8), "observation": np.full(4, k / 2, np.float32)} for k in range(3)
    ]
    if batched:
        final: Any = {key: np.stack([s[key] for s in shown]) for key in ("action_mask", "observation")}
    else:
        final = np.array([None, shown[1], shown[2]], dtype=object)
    inputs = adapter.encode_final({"final_obs": final}, np.array([1, 2]))
    assert inputs.features[:, 0].tolist() == [0.5, 1.0]
    assert inputs.masks["action"].tolist() == [[True, True], [True, False]]


def test_the_mask_of_a_final_observation_may_lie_in_its_info() -> None:
    mask = np.array([1, 0], np.int8)
    envs = vector(BOX, TWO, info={"action_mask": mask})
    adapter = EnvironmentAdapter(envs)
    adapter.encode(*envs.reset(seed=0))
    *_, infos = envs.step(np.zeros(3, np.int64))
    inputs = adapter.encode_final(infos, np.array([0, 2]))
    assert inputs.masks["action"].tolist() == [[True, False]] * 2


def test_slots_become_indices() -> None:
    slots = spaces.Box(-1, 12, (2,), dtype=np.int64)
    envs = vector(spaces.Dict({"features": BOX, "blueprints": slots}), TWO)
    adapter = EnvironmentAdapter(envs)
    observation, infos = envs.reset(seed=0)
    assert adapter.num_slots == 2
    assert adapter.state_dim == 4
    assert adapter.encode(observation, infos).blueprint_indices.tolist() == observation["blueprints"].tolist()


def test_environments_are_made_by_id() -> None:
    own_vector_form, single = make_envs("CartPole-v1", 2), make_envs("FrozenLake-v1", 2)
    assert own_vector_form.num_envs == single.num_envs == 2
    assert autoreset_mode(single) is AutoresetMode.SAME_STEP
    own_vector_form.close()
    single.close()


# ---------------------------------------------------------------------- trees, images, many choices, own encoders


def pictures(space: spaces.Box) -> np.ndarray:
    """What three environments show of it."""
    return np.stack([space.sample() for _ in range(3)])


@pytest.mark.parametrize(
    ("shape", "encoded", "axes"),
    [
        ((3, 20, 30), (3, 20, 30), (0, 1, 2, 3)),
        ((20, 30, 3), (3, 20, 30), (0, 3, 1, 2)),
        ((4, 84, 84), (4, 84, 84), (0, 1, 2, 3)),
        ((20, 30), (1, 20, 30), (0, 1, 2)),
        ((4, 20, 30, 3), (12, 20, 30), (0, 1, 4, 2, 3)),
        ((4, 3, 20, 30), (12, 20, 30), (0, 1, 2, 3, 4)),
    ],
)
def test_images_are_read_channels_first_or_last_and_frames_are_channels(
    shape: tuple[int, ...], encoded: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    adapter = EnvironmentAdapter(vector(spaces.Dict({"camera": space}), TWO))
    (part,) = adapter.parts
    assert (part.name, part.kind, part.shape, part.low, part.high) == ("camera", "image", encoded, 0.0, 255.0)
    batch = pictures(space)
    inputs = adapter.encode({"camera": batch}, {})
    assert inputs.features.shape == (3, 0)
    assert inputs.parts["camera"].dtype == torch.uint8
    assert np.array_equal(inputs.parts["camera"], batch.transpose(axes).reshape(3, *encoded))


def test_trees_of_observations_are_read_by_path() -> None:
    camera = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    space = spaces.Tuple([spaces.Dict({"camera": camera, "speed": BOX}), spaces.Discrete(3, start=1)])
    envs = vector(space, TWO)
    adapter = EnvironmentAdapter(envs)
    observation, infos = envs.reset(seed=0)
    inputs = adapter.encode(observation, infos)
    assert set(inputs.parts) == {"0/camera"}
    expected = np.concatenate([observation[0]["speed"], np.eye(3)[observation[1] - 1]], axis=-1)
    torch.testing.assert_close(inputs.features, torch.from_numpy(expected.astype(np.float32)))
    *_, infos = envs.step(np.zeros(3, np.int64))
    final = adapter.encode_final(infos, np.array([0, 2]))
    assert np.array_equal(final.features[1, :4], infos["final_obs"][2][0]["speed"])


def test_a_choice_among_65_536_costs_no_gigabytes() -> None:
    space = spaces.Dict({"card": spaces.Discrete(65_536, start=-5), "dice": spaces.MultiDiscrete([60, 60])})
    envs = vector(space, TWO)
    adapter = EnvironmentAdapter(envs)
    assert [part.choices for part in adapter.parts] == [(65_536,), (60, 60)]
    observation, infos = envs.reset(seed=0)
    parts = adapter.encode(observation, infos).parts
    assert np.array_equal(parts["card"], observation["card"] + 5)
    assert np.array_equal(parts["dice"], observation["dice"])
    policy = train(envs, config=TrainConfig(updates=1, num_steps=8)).policy
    assert sum(p.numel() for p in policy.network.part_encoder.parameters()) < 20e6
    observation["card"][1] = 65_531
    with pytest.raises(ValueError, match="observation 'card' of environment 1 is outside of its space Discrete"):
        adapter.encode(observation, infos)


def test_a_module_of_your_own_may_encode_any_part(tmp_path) -> None:
    """It is trained, saved, resumed and read back."""
    space = spaces.Dict({"graph": spaces.Box(0, 1, (3, 3, 3)), "speed": BOX})

    def module() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 8))

    given = module()
    before = given[1].weight.clone()
    config = TrainConfig(updates=1, num_steps=8)
    result = train(vector(space, TWO), config=config, encoders={"graph": given}, run_dir=tmp_path)
    assert not torch.equal(given[1].weight, before)
    assert evaluate(result.policy, vector(space, TWO), episodes=3).returns.shape == (3,)
    again = load_bundle(tmp_path, encoders={"graph": module()})
    assert torch.equal(again.network.part_encoder.own["graph"][1].weight, given[1].weight)
    longer = TrainConfig(updates=2, num_steps=8)
    resumed = train(vector(space, TWO), config=longer, encoders={"graph": module()}, run_dir=tmp_path, resume=True)
    assert len(resumed.metrics) == 1
    with pytest.raises(
        ValueError, match=r"encoders are given for \['grid'\], but the parts of .* are \['graph', 'speed'\]"
    ):
        train(vector(space, TWO), config=config, encoders={"grid": module()})


def test_a_number_that_is_not_finite_in_an_image_is_named() -> None:
    space = spaces.Box(-np.inf, np.inf, (3, 20, 20))
    batch = np.zeros((3, 3, 20, 20), np.float32)
    batch[2, 0, 0, 7] = np.nan
    with pytest.raises(
        ValueError, match=r"observation 'observation' of environment 2 is not finite \(nan at number 7\)"
    ):
        EnvironmentAdapter(vector(space, TWO)).encode(batch, {})


def test_a_number_outside_of_its_bounds_is_said_once() -> None:
    adapter = EnvironmentAdapter(vector(BOX, TWO))
    batch = np.zeros((3, 4), np.float32)
    batch[1, 2] = 1.5
    with pytest.warns(ObservationOutsideSpaceWarning, match="observation 'observation' of environment 1 is outside of"):
        inputs = adapter.encode(batch, {})
    assert inputs.features[1, 2] == 1.5
    adapter.encode(batch, {})


def test_environments_that_show_other_parts_are_refused() -> None:
    one, other = (vector(spaces.Box(0, 255, shape, np.uint8), TWO) for shape in ((3, 20, 20), (3, 20, 30)))
    with pytest.raises(ValueError, match=r"environment 1 shows the parts .* but the policy reads .* must be the same"):
        train([one, other], config=TrainConfig(updates=1, num_steps=4))


# ---------------------------------------------------------------------- actions within their bounds


def test_numbers_arrive_within_the_bounds_of_their_space() -> None:
    low, high = np.array([[-2, 0], [5, -1e6]], np.float32), np.array([[2, 0.1], [6, 1e6]], np.float32)
    space = spaces.Box(low, high)
    envs = vector(BOX, space)
    adapter = EnvironmentAdapter(envs)
    assert adapter.heads == HeadTable([Head("action", 4, kind="gaussian")])
    for u, expected in ((0.0, (low + high) / 2), (40.0, high), (-40.0, low)):
        actions = adapter.decode({"action": torch.full((3, 4), u)})
        np.testing.assert_allclose(actions, np.stack([expected] * 3), rtol=1e-5)
        assert envs.action_space.contains(actions)
    for u in (-9.3, -8.9, 8.9, 9.3):  # where rounding may step over
        assert envs.action_space.contains(adapter.decode({"action": torch.full((3, 4), u)}))


def test_a_tree_of_actions_arrives_as_it_was_declared() -> None:
    space = spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.Discrete(3, start=2), spaces.Box(0, 1, (2, 2))]),
            "dice": spaces.MultiDiscrete([[2, 3], [4, 5]]),
            "lamps": spaces.MultiBinary((2, 1)),
        }
    )
    envs = vector(BOX, space)
    adapter = EnvironmentAdapter(envs)
    drawn = {
        head.name: torch.ones(3, dtype=torch.int64) if head.is_categorical else torch.ones(3, head.num_choices).long()
        for head in adapter.heads
    }
    actions = adapter.decode(drawn)
    assert envs.action_space.contains(actions)
    envs.step(actions)
    assert envs.envs[1].unwrapped.done[0]["arm"][0] == 3
    declared = HeadTable([Head("lamps", 2, kind="bernoulli"), *[h for h in adapter.heads if h.name != "lamps"]])
    assert EnvironmentAdapter(envs, declared).heads == declared  # in another order


# ---------------------------------------------------------------------- what the page says


@pytest.mark.parametrize(("title", "table"), [("actions", ACTION_SPACES), ("observations", OBSERVATION_SPACES)])
def test_the_page_says_what_the_code_supports(title: str, table: dict[type[spaces.Space], str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ppo_for_your_environment.md").read_text(encoding="utf-8")
    for kind, becomes in table.items():
        assert f"| `{kind.__name__}` ({title}) | {becomes} |" in page


EXAMPLES: dict[type[spaces.Space], spaces.Space] = {
    spaces.Discrete: spaces.Discrete(3),
    spaces.MultiDiscrete: spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary: spaces.MultiBinary(3),
    spaces.Box: BOX,
    spaces.Dict: spaces.Dict({"x": BOX, "y": TWO}),
    spaces.Tuple: spaces.Tuple([BOX, TWO]),
}


@pytest.mark.parametrize("kind", list(EXAMPLES), ids=lambda kind: kind.__name__)
def test_everything_that_is_said_to_be_supported_is_trained_on(kind: type[spaces.Space]) -> None:
    assert set(EXAMPLES) == set(ACTION_SPACES) == set(OBSERVATION_SPACES)
    envs = vector(EXAMPLES[kind], EXAMPLES[kind])
    result = train(envs, config=TrainConfig(updates=1, num_steps=8))
    errors = [v for name, v in result.metrics[-1].items() if name.startswith("first_ratio_error")]
    assert max(errors) < 1e-5


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0", "Blackjack-v1", "Taxi-v4"])
def test_environments_that_came_with_gymnasium_are_trained_on(name: str) -> None:
    """Numbers as actions; a tuple as observation; 500 states, with a mask in info."""
    result = train(name, config=TrainConfig(updates=1, num_steps=8, num_envs=2))
    errors = [v for key, v in result.metrics[-1].items() if key.startswith("first_ratio_error")]
    assert max(errors) < 1e-5
