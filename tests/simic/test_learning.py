"""That it learns, against known scores. The quick ones take seconds; the slow ones are the proof."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import FilterObservation, TransformAction
from gymnasium.wrappers.vector import TransformObservation

from esper.heads import Head, HeadTable
from esper.simic import NetworkOptions, PPOConfig, TrainConfig, archer, evaluate, locksmith, train
from esper.simic.archer import Archer
from esper.simic.locksmith import Locksmith
from esper.simic.spaces import EnvironmentAdapter, make_envs
from esper.simic.training.collector import Collector
from esper.simic.training.vectorized import make_bundle
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, Step


def leaves_of(space: spaces.Space, tree: Any) -> list[np.ndarray]:
    """What lies at the leaves of a tree of arrays, in order."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, inner in space.items() for leaf in leaves_of(inner, tree[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for inner, value in zip(space, tree, strict=True) for leaf in leaves_of(inner, value)]
    return [tree]


def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of the entries that are equal; of numbers from −1 to 1, how near they are: 0 from a half, 1 for equal."""
    same = 1 - 2 * np.abs(one - other).clip(max=0.5) if one.dtype.kind == "f" else one == other
    return same.reshape(len(one), -1).mean(-1)


class Identity(VectorEnv):
    """Answer with what is shown: the share of the entries that is right is the reward, for eight steps."""

    def __init__(
        self, action_space: spaces.Space, observation_space: spaces.Space | None = None, **metadata: Any
    ) -> None:
        self.num_envs = 32
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, **metadata}
        self.single_action_space = action_space
        self.single_observation_space = observation_space or action_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 8
        return self.show(), {}

    def step(self, actions):
        assert self.action_space.contains(actions)
        rewards = self.points(actions)
        self.left = self.left - 1 or 8
        over = np.full(self.num_envs, self.left == 8)
        return self.show(), rewards, over, np.zeros_like(over), {}

    def show(self):
        self.shown = self.observation_space.sample()
        return self.shown

    def points(self, actions) -> np.ndarray:
        shown, answers = leaves_of(self.single_action_space, self.shown), leaves_of(self.single_action_space, actions)
        return np.mean([alike(one, other) for one, other in zip(shown, answers, strict=True)], axis=0)


class Dependent(Identity):
    """The second answer must be the first plus what is shown, and the mask alone tells which first answer is legal."""

    def __init__(self) -> None:
        super().__init__(
            spaces.Dict({"first": spaces.Discrete(4), "second": spaces.Discrete(4)}),
            spaces.Dict({"action_mask": spaces.Dict({"first": spaces.MultiBinary(4)}), "shown": spaces.Discrete(4)}),
            heads=HeadTable([Head("first", 4), Head("second", 4, parent="first")]).to_json(),
        )

    def show(self):
        self.legal = self.np_random.integers(4, size=self.num_envs)
        self.shown = self.np_random.integers(4, size=self.num_envs)
        return {"action_mask": {"first": np.eye(4, dtype=np.int8)[self.legal]}, "shown": self.shown}

    def points(self, actions) -> np.ndarray:
        assert (actions["first"] == self.legal).all()
        return (actions["second"] == (actions["first"] + self.shown) % 4).astype(float)


class Hybrid(Identity):
    """Wait, or aim at what is shown: only who aims needs the numbers, and the mask tells who may wait."""

    def __init__(self) -> None:
        aim = spaces.Box(-1, 1, (2,))
        mask = spaces.Dict({"verb": spaces.MultiBinary(2)})
        super().__init__(
            spaces.Dict({"verb": spaces.Discrete(2), "aim": aim}),
            spaces.Dict({"action_mask": mask, "target": aim}),
            heads=HeadTable(
                [Head("verb", 2), Head("aim", 2, kind="gaussian", parent="verb", used_when={"verb": (1,)})]
            ).to_json(),
        )

    def show(self):
        self.must_wait = self.np_random.random(self.num_envs) < 0.5
        mask = np.stack([self.must_wait, np.ones(self.num_envs, bool)], axis=-1).astype(np.int8)
        self.target = self.np_random.uniform(-1, 1, (self.num_envs, 2)).astype(np.float32)
        return {"action_mask": {"verb": mask}, "target": self.target}

    def points(self, actions) -> np.ndarray:
        waits = actions["verb"] == 0
        assert (self.must_wait | ~waits).all()
        assert not actions["aim"][waits].any()  # the middle of the bounds
        aimed = alike(self.target, actions["aim"])
        return np.where(self.must_wait, waits, aimed * ~waits).astype(float)


class Forced(Identity):
    """Three bits, of which the mask forces one, to a value that may be wrong: only the others count."""

    def __init__(self) -> None:
        bits = spaces.MultiBinary(3)
        super().__init__(bits, spaces.Dict({"action_mask": spaces.MultiBinary((3, 2)), "shown": bits}))

    def show(self):
        self.shown = self.np_random.integers(2, size=(self.num_envs, 3), dtype=np.int8)
        self.forced = np.eye(3, dtype=bool)[self.np_random.integers(3, size=self.num_envs)]
        self.value = self.np_random.integers(2, size=(self.num_envs, 1))
        mask = np.ones((self.num_envs, 3, 2), np.int8)
        mask[self.forced] = np.eye(2, dtype=np.int8)[self.value[:, 0]]
        return {"action_mask": mask, "shown": self.shown}

    def points(self, actions) -> np.ndarray:
        assert (actions == self.value)[self.forced].all()
        return ((actions == self.shown) & ~self.forced).sum(-1) / 2


class Picture(Identity):
    """Tell in which corner of a small picture the bright square is, which of a thousand cards lies beside it."""

    def __init__(self, channels_first: bool) -> None:
        shape = (3, 12, 12) if channels_first else (12, 12, 3)
        self.channels_first = channels_first
        super().__init__(
            spaces.Dict({"corner": spaces.Discrete(4), "red": spaces.Discrete(2)}),
            spaces.Tuple(
                [
                    spaces.Box(0, 255, shape, np.uint8),
                    spaces.Dict({"card": spaces.Discrete(1000), "wind": spaces.Box(-1, 1, (2,))}),
                ]
            ),
        )

    def show(self):
        corner = self.np_random.integers(4, size=self.num_envs)
        card = self.np_random.integers(8, size=self.num_envs) + 900
        self.shown = {"corner": corner, "red": card % 2}
        picture = self.np_random.integers(20, size=(self.num_envs, 12, 12, 3)).astype(np.uint8)
        for k, c in enumerate(corner):
            y, x = self.np_random.integers(4, size=2) + 6 * np.array(divmod(int(c), 2))
            picture[k, y : y + 3, x : x + 3] = 200
        if self.channels_first:
            picture = picture.transpose(0, 3, 1, 2)
        wind = self.np_random.uniform(-1, 1, (self.num_envs, 2)).astype(np.float32)
        return picture, {"card": card, "wind": wind}


@pytest.mark.parametrize("memory", ["lstm", "none"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity(spaces.Discrete(4, start=-1)),
        lambda: Identity(spaces.MultiDiscrete([3, 4])),
        lambda: Identity(spaces.Dict({"x": spaces.Discrete(3), "y": spaces.Discrete(4)})),
        Dependent,
        lambda: Identity(spaces.MultiBinary((2, 2))),
    ],
    ids=["discrete", "multi_discrete", "dict", "masked_and_dependent", "multi_binary"],
)
def test_learns_the_identity_on_every_action_space(make: Callable[[], Identity], memory: Any) -> None:
    config = TrainConfig(
        updates=24,
        num_steps=16,
        ppo=PPOConfig(learning_rate="linear:1e-2", gamma=0.5, minibatches=2),
        network=NetworkOptions(hidden_dim=32, head_dim=32, memory=memory),
    )
    policy = train(make(), config=config).policy
    assert evaluate(policy, make(), episodes=32).mean_return > 0.9 * 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity(spaces.Box(-1, 1, (2,))),
        lambda: Identity(
            spaces.Dict(
                {
                    "gear": spaces.Discrete(2),
                    "arm": spaces.Tuple([spaces.Box(-1, 1, (1,)), spaces.MultiBinary(2)]),
                }
            )
        ),
        Hybrid,
        Forced,
        lambda: Picture(channels_first=True),
        lambda: Picture(channels_first=False),
    ],
    ids=["box", "nested", "hybrid", "masked_bits", "picture_channels_first", "picture_channels_last"],
)
def test_learns_numbers_trees_and_pictures(make: Callable[[], Identity]) -> None:
    """Without skill: 3.0 of 8 for the box, 4.0 nested, 2.6 hybrid, 4.0 for the bits, and 3.0 for the picture."""
    config = TrainConfig(
        updates=24,
        num_steps=16,
        ppo=PPOConfig(learning_rate="linear:5e-3", gamma=0.5, minibatches=2, entropy_coefficient=0.001),
        network=NetworkOptions(hidden_dim=32, head_dim=32, part_dim=32, memory="none"),
    )
    result = train(make(), config=config)
    assert max(v for row in result.metrics for n, v in row.items() if n.startswith("first_ratio_error")) < 1e-4
    assert evaluate(result.policy, make(), episodes=32).mean_return > 0.8 * 8


# ---------------------------------------------------------------------- memory stays flat


class Careless(LSTMPolicyBundle):
    """Acts with a graph, as one does who forgets to detach."""

    def step(self, inputs, hidden, noise):
        features = self._normalized("features", inputs.features)
        core, hidden = self.network.core(features, inputs.blueprint_indices, hidden, inputs.parts)
        return Step(self.network.draw(core, inputs.masks, noise), core, hidden)

    def initial_hidden(self, batch_size):
        return self.network.initial_hidden(batch_size)


def graph_size(tensor: torch.Tensor) -> int:
    """Number of autograd nodes that ``tensor`` keeps alive."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def growth_over_500_episodes(kind: type[LSTMPolicyBundle]) -> tuple[int, int]:
    """Autograd nodes behind the hidden state after 500 episodes, and live tensors added over the last 400."""
    envs = make_envs("CartPole-v1", 8)
    adapter = EnvironmentAdapter(envs)
    policy = make_bundle(adapter, TrainConfig(network=NetworkOptions(hidden_dim=8, head_dim=8)))
    policy = kind(policy.network, observation_normalizer=policy.observation_normalizer)
    collector = Collector(envs, adapter, 32)
    collector.reset(policy, 0)
    generator = torch.Generator().manual_seed(0)
    episodes, before = 0, 0
    while episodes < 500:
        collector.collect(policy, generator, gamma=0.9, gae_lambda=0.9)
        if episodes < 100 <= episodes + len(collector.episodes):
            before = live_tensors()
        episodes += len(collector.episodes)
    return graph_size(collector._hidden[0]), live_tensors() - before


def test_nothing_grows_over_500_episodes() -> None:
    nodes, tensors = growth_over_500_episodes(LSTMPolicyBundle)
    assert nodes == 0
    assert tensors <= 0


def test_the_graph_grows_over_500_episodes_when_nobody_detaches() -> None:
    """What the test above would see."""
    nodes, _ = growth_over_500_episodes(Careless)
    assert nodes > 10_000


# ---------------------------------------------------------------------- slow: known scores


def cartpole_without_velocities(num_envs: int = 16) -> VectorEnv:
    """CartPole that shows the positions of cart and pole only: velocities must be remembered."""
    envs = gym.make_vec("CartPole-v1", num_envs)
    box = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    return TransformObservation(
        envs,
        lambda observation: observation[:, [0, 2]],
        observation_space=batch_space(box, num_envs),
        single_observation_space=box,
    )


def cartpole_return(**network: Any) -> float:
    config = TrainConfig(
        total_steps=150_000, ppo=PPOConfig(learning_rate="linear:1e-3"), network=NetworkOptions(**network)
    )
    policy = train(cartpole_without_velocities(), config=config).policy
    return evaluate(policy, cartpole_without_velocities(), episodes=100).mean_return


@pytest.mark.slow
def test_cartpole_without_velocities_is_solved_with_memory() -> None:
    assert cartpole_return() >= 450


@pytest.mark.slow
def test_cartpole_without_velocities_is_not_solved_without_memory() -> None:
    assert cartpole_return(memory="none") < 100


@pytest.mark.slow
def test_pendulum_is_swung_up_and_held() -> None:
    """Who does nothing gets about −1,200; who holds it upright −150 to −200, for the way up."""
    ppo = PPOConfig(learning_rate="linear:2e-3", gamma=0.9, epochs=10, minibatches=8, entropy_coefficient=0.0)
    network = NetworkOptions(memory="none", hidden_dim=64, head_dim=64)
    config = TrainConfig(total_steps=100_000, num_steps=200, ppo=ppo, network=network)
    policy = train("Pendulum-v1", config=config).policy
    assert evaluate(policy, "Pendulum-v1", episodes=100, seed=1).mean_return > -230


class CarPosition(gym.wrappers.TransformObservation):
    """The position of the car, without its velocity."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env, lambda observation: observation[:1], spaces.Box(-1.2, 0.6, (1,), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_mountain_car_continuous_without_velocity_is_driven_up(seed: int) -> None:
    """Who stands still gets 0; the goal is worth 100, less what driving there costs.

    With noise drawn anew at every step the goal is hardly ever found, and then it is luck.
    """
    envs = make_envs("MountainCarContinuous-v0", 16, wrappers=[CarPosition])
    ppo = PPOConfig(learning_rate="linear:1e-3", minibatches=8, entropy_coefficient=0.0)
    config = TrainConfig(seed=seed, total_steps=60_000, num_steps=256, noise_correlation=0.9, ppo=ppo)
    policy = train(envs, config=config).policy
    assert evaluate(policy, envs, episodes=50, seed=1).mean_return > 91.2  # published, by noise that hangs on the state


def copies(make: Callable[[], gym.Env], *, masked: bool = True) -> VectorEnv:
    """Sixteen of them; without the mask, they still end the episode of who reaches too far."""
    shown = [key for key in make().observation_space if key != "action_mask"]
    one = make if masked else lambda: FilterObservation(make(), shown)
    return SyncVectorEnv([one] * 16, autoreset_mode=AutoresetMode.SAME_STEP)


def small_return(
    make: Callable[[], gym.Env],
    total_steps: int,
    *,
    entropy: float = 0.01,
    masked: bool = True,
    independent: bool = False,
    **network: Any,
) -> float:
    config = TrainConfig(
        total_steps=total_steps,
        ppo=PPOConfig(learning_rate="linear:2e-3", minibatches=8, gamma=0.5, entropy_coefficient=entropy),
        network=NetworkOptions(**network),
    )
    envs = copies(make, masked=masked)
    policy = make_bundle(EnvironmentAdapter(envs), config)
    if independent:
        silence(policy)
    train(envs, config=config, policy=policy)
    return evaluate(policy, copies(make, masked=masked), episodes=400, deterministic=False).mean_return


def silence(policy: LSTMPolicyBundle) -> None:
    """Let no head know what the ones before it drew."""
    for head in policy.network.tree.heads:
        if head.conditioning is not None:
            head.conditioning.requires_grad_(False)
            torch.nn.init.zeros_(head.conditioning.weight)


@pytest.mark.slow
def test_locksmith_is_solved_with_memory_masks_and_dependent_heads() -> None:
    assert small_return(Locksmith, 120_000) > 0.95 * locksmith.CEILINGS["memory, masks and dependent heads"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ("no memory", {"memory": "none"}),
        ("no mask", {"masked": False}),
        ("independent heads", {"independent": True}),
    ],
)
def test_locksmith_is_not_solved_without_one_of_the_three(missing: str, options: dict[str, Any]) -> None:
    """Sampling noise is all that may lie above the ceiling."""
    assert small_return(Locksmith, 120_000, **options) < locksmith.CEILINGS[missing] + 0.03


class MiddleRange(TransformAction):
    """Archer whose shots all go to the middle of the field."""

    metadata = Archer.metadata | {"heads": HeadTable(list(archer.HEADS)[:2]).to_json()}

    def __init__(self) -> None:
        env = Archer()
        chosen = spaces.Dict({name: env.action_space[name] for name in ("act", "target")})
        super().__init__(env, lambda action: {**action, "range": np.zeros(1, np.float32)}, chosen)


@pytest.mark.slow
def test_archer_is_solved_with_everything() -> None:
    """A drawn number is never quite the right one: a deviation of a tenth of a width costs 8 %."""
    assert small_return(Archer, 80_000, entropy=0.001) > 0.9 * archer.CEILINGS["everything"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "make", "options"),
    [
        ("no memory", Archer, {"memory": "none"}),
        ("no mask", Archer, {"masked": False}),
        ("independent heads", Archer, {"independent": True}),
        ("no number", MiddleRange, {}),
    ],
)
def test_archer_is_not_solved_without_one_of_the_four(missing: str, make: Any, options: dict[str, Any]) -> None:
    assert small_return(make, 80_000, entropy=0.001, **options) < archer.CEILINGS[missing] + 0.03
