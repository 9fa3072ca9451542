"""Environments in Ray actors give every bit of one process, also when actors die in the middle of an episode."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

import mortal
from episodes import bits
from esper.cli import main
from esper.cluster import connect
from esper.simic import NetworkOptions, PPOConfig, TrainConfig, ray_envs, train
from esper.simic.environments import named
from esper.simic.locksmith import register_environments
from esper.simic.ray_envs import Course, RayVectorEnv, _Row
from esper.simic.spaces import make_envs
from esper.simic.training.phases import Phases

ray = pytest.importorskip("ray")

CLOCKS = {"steps_per_second", *Phases().metrics()}

SHORT = {"max_episode_steps": 7}


def played(envs, steps=20, before_step=lambda step: None):
    """Every bit of some steps of random actions, the same in each call."""
    shown = [envs.reset(seed=3)]
    envs.action_space.seed(5)
    for step in range(steps):
        before_step(step)
        shown.append(envs.step(envs.action_space.sample()))
    envs.close()
    return bits(shown)


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs of this machine, for actors that know the modules of these tests."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(mortal.__file__).parent), before])
    try:
        connect(2, None)
        yield 2
    finally:
        os.environ["PYTHONPATH"] = before
        ray.shutdown()


# ---------------------------------------------------------------------- episodes that are played again


def followed(row, course, actions):
    """The course of a row after ``actions``, that of its present episode."""
    for action in actions:
        step = row.step(action)
        if step.following is None:
            course.actions.append(action)
            course.digest = step.digest
        else:
            course = Course(step.following.beginning, step.following.digest)
    return course


@pytest.mark.parametrize("steps", [4, 19], ids=["of the first episode", "of one that began by itself"])
def test_an_episode_is_played_again_from_how_it_began(steps) -> None:
    first, again = (_Row(gym.make("Acrobot-v1", **SHORT)) for _ in range(2))
    reset = first.reset(seed=1)
    course = followed(
        first, Course(reset.beginning, reset.digest), [0, 1, 2, 2] * 4 + [1, 0, 2] if steps > 4 else [2] * 4
    )
    assert again.play(course)
    for action in [0, 2] * 10:  # into further episodes
        one, other = first.step(action), again.step(action)
        assert bits(one.result) == bits(other.result)
        assert one.digest == other.digest


def test_one_that_shows_something_else_is_noticed() -> None:
    row = _Row(gym.make("Acrobot-v1", **SHORT))
    reset = row.reset(seed=1)
    course = followed(row, Course(reset.beginning, reset.digest), [2] * 4)
    course.actions[1] = 0
    assert not _Row(gym.make("Acrobot-v1", **SHORT)).play(course)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "auto"], "is of use to Ray workers only"),
        (["--ray-workers", "-1"], "expected 0 or more, got -1"),
        (["--ray-workers", "2", "--vectorization", "async"], "not both"),
        (["--ray-workers", "2", "--address", "somewhere"], "expected the address of a Ray cluster, got 'somewhere'"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, said, capsys) -> None:
    assert main(["ppo", "--env", "CartPole-v1", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# ---------------------------------------------------------------------- slow: with actors


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["Acrobot-v1", "esper/Locksmith-v0"])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_bit_is_that_of_one_process(cluster, env_id, workers) -> None:
    register_environments()
    options = {"wrappers": [lambda env: TimeLimit(env, 7)]}
    mine, alone = (
        RayVectorEnv(env_id, 3, workers=workers, **options),
        make_envs(env_id, 3, vectorization="sync", **options),
    )
    assert named(mine) == named(alone)
    assert played(mine) == played(alone)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ray.kill", "SIGKILL"])
def test_an_actor_that_dies_in_mid_episode_changes_no_bit(cluster, how) -> None:
    envs = RayVectorEnv("Acrobot-v1", 3, workers=cluster, **SHORT)

    def kill(step):
        if step in (3, 10, 11):  # in the middle of the first episode and of the second
            victim = ray_envs._ACTORS[step % 2]
            victims.append(victim)
            if how == "ray.kill":
                ray.kill(victim)
            else:
                os.kill(ray.get(victim.__ray_call__.remote(lambda actor: os.getpid())), signal.SIGKILL)

    victims = []
    assert played(envs, before_step=kill) == played(make_envs("Acrobot-v1", 3, vectorization="sync", **SHORT))
    assert len(victims) == 3
    assert not set(victims) & set(ray_envs._ACTORS)


@pytest.mark.slow
def test_an_environment_that_is_not_deterministic_is_refused_and_the_way_on_is_said(cluster) -> None:
    envs = RayVectorEnv("Acrobot-v1", 2, workers=cluster, wrappers=[mortal.Numbered])
    with pytest.raises(ChildProcessError, match=r"environment 1 is not deterministic: .* by --resume"):
        played(envs, before_step=lambda step: ray.kill(ray_envs._ACTORS[1]) if step == 3 else None)


@pytest.mark.slow
def test_an_error_of_an_environment_is_raised_as_it_was_and_the_others_wait(cluster) -> None:
    envs, alone = RayVectorEnv("Acrobot-v1", 2, workers=cluster), make_envs("Acrobot-v1", 2, vectorization="sync")
    envs.reset(seed=0)
    alone.reset(seed=0)
    with pytest.raises(IndexError, match="list index out of range"):
        envs.step(np.array([1, 7]))
    assert bits(envs.step(np.array([1, 2]))) == bits(alone.step(np.array([1, 2])))


@pytest.mark.slow
def test_a_training_is_the_same_on_ray(cluster) -> None:
    def rows(envs):
        network = NetworkOptions(hidden_dim=16, head_dim=8)
        config = TrainConfig(updates=2, num_steps=16, network=network, ppo=PPOConfig(epochs=1))
        metrics = train(envs, config=config).metrics
        envs.close()
        return [{name: repr(value) for name, value in row.items() if name not in CLOCKS} for row in metrics]

    alone = rows(make_envs("Acrobot-v1", 3, vectorization="sync", **SHORT))
    assert rows(RayVectorEnv("Acrobot-v1", 3, workers=cluster, **SHORT)) == alone
