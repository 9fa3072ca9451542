"""Evaluation during training: on environments of its own, the best policy kept, a way to stop, the same on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from esper.simic import Callback, NetworkOptions, PPOConfig, TrainConfig, evaluate, load_bundle, train
from esper.simic.training import run_directory
from esper.simic.training.checkpoint import find_checkpoint, load_state
from esper.simic.training.phases import Phases

CLOCKS = {"steps_per_second", *Phases().metrics()}


def config(**changes: Any) -> TrainConfig:
    short = {"updates": 4, "num_envs": 2, "num_steps": 8, "checkpoint_every": 3, "eval_every": 2, "eval_episodes": 3}
    network, ppo = NetworkOptions(hidden_dim=8, head_dim=8), PPOConfig(learning_rate=0.02, epochs=2, minibatches=1)
    return TrainConfig(**{**short, "network": network, "ppo": ppo, **changes})


class Wavering(gym.Env):
    """An evaluation's return is what stands in RETURNS, one after the other; the training does not matter."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    RETURNS = (1.0, 3.0, 2.0, 3.0)

    def __init__(self, evaluations: int = 0) -> None:
        self.evaluations = evaluations

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.evaluations += 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.RETURNS[self.evaluations - 1], True, False, {}


def rows(run_dir: Path) -> list[dict[str, str]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{n: repr(v) for n, v in json.loads(line).items() if n not in CLOCKS} for line in lines]


def weights(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Snapshots(Callback):
    """The weights after every update; ends the run with an error after some."""

    def __init__(self, crash_after: int | None = None) -> None:
        self.crash_after, self.weights = crash_after, {}

    def on_start(self, plan):
        self.policy = plan.policy

    def on_update(self, metrics: Mapping[str, float]) -> None:
        self.weights[metrics["update"]] = weights(self.policy)
        if metrics["update"] == self.crash_after:
            raise RuntimeError("crash")


# ---------------------------------------------------------------------- what an evaluation says


def test_every_so_many_updates_and_after_the_last_there_is_an_evaluation() -> None:
    result = train(Wavering(), config=config(updates=5), eval_envs=Wavering())
    assert [row["update"] for row in result.metrics if "eval/return" in row] == [2, 4, 5]
    assert "eval/return" not in train(Wavering(), config=config(eval_every=None, updates=1)).metrics[-1]


def test_an_environment_given_by_its_id_is_evaluated_on_copies_of_its_own() -> None:
    row = train("esper/Locksmith-v0", config=config(updates=1)).metrics[-1]
    assert 0 <= row["eval/return"] <= row["eval/best_return"] <= 1


def test_an_evaluation_is_what_evaluate_says_of_the_policy_at_that_time(tree_world) -> None:
    """Return, length and what the environment reports, on the same episodes in every evaluation."""
    envs, own = (tree_world(2, AutoresetMode.SAME_STEP) for _ in range(2))
    seeds: list[int] = []
    reset = own.reset
    own.reset = lambda *, seed: seeds.append(seed) or reset(seed=seed)
    result = train(envs, config=config(), eval_envs=own)
    last = result.metrics[-1]
    assert len(seeds) == 2
    assert len(set(seeds)) == 1
    again = evaluate(result.policy, tree_world(2, AutoresetMode.SAME_STEP), episodes=3, seed=seeds[0])
    assert last["eval/return"] == again.mean_return
    assert last["eval/length"] == again.lengths.mean()
    assert last["eval/standard_error"] == again.standard_error
    assert last["eval/score"] == again.metrics["score"].mean()


def test_a_run_is_the_same_with_and_without_evaluations(tree_world) -> None:
    mode = AutoresetMode.SAME_STEP
    with_them, without = (
        train(tree_world(2, mode), config=config(eval_every=every, updates=2), eval_envs=tree_world(2, mode)).policy
        for every in (1, None)
    )
    assert torch.equal(weights(with_them), weights(without))


# ---------------------------------------------------------------------- the best policy


def test_the_best_policy_is_kept_with_its_update_and_return(tmp_path: Path) -> None:
    """Returns of 1, 3, 2 and 3: the first of the best stays."""
    watch = Snapshots()
    result = train(Wavering(), config=config(updates=8), run_dir=tmp_path, eval_envs=Wavering(), callback=watch)
    evaluated = [row for row in result.metrics if "eval/return" in row]
    assert [row["eval/return"] for row in evaluated] == [1, 3, 2, 3]
    assert [row["eval/best_return"] for row in evaluated] == [1, 3, 3, 3]
    assert load_state(find_checkpoint(tmp_path / "best")) == {"update": 4, "return": 3.0}
    assert torch.equal(weights(load_bundle(tmp_path, best=True)), watch.weights[4])
    assert torch.equal(weights(load_bundle(tmp_path)), watch.weights[8])


def test_the_best_policy_is_never_ahead_of_the_checkpoint(tmp_path: Path) -> None:
    """Else a run that was killed would go on from before it, and find it there."""
    seen: list[tuple[int, int]] = []

    class Places(Callback):
        def on_update(self, metrics):
            if (tmp_path / "best").exists():
                seen.append(tuple(load_state(tmp_path / place)["update"] for place in ("best", "checkpoint")))

    options = config(updates=7, checkpoint_every=100)
    train(Wavering(), config=options, run_dir=tmp_path, eval_envs=Wavering(), callback=Places())
    assert seen == [(2, 2), (2, 2), (4, 4), (4, 4), (4, 4)]


def test_without_evaluations_there_is_no_best_policy(tmp_path: Path) -> None:
    train("CartPole-v1", config=config(eval_every=None, updates=1), run_dir=tmp_path)
    assert not (tmp_path / "best").exists()
    with pytest.raises(ValueError, match=r"expected a checkpoint in '.*/best', found none"):
        load_bundle(tmp_path, best=True)


# ---------------------------------------------------------------------- resuming


def test_a_resumed_run_evaluates_and_keeps_as_if_never_interrupted(tree_world, tmp_path: Path) -> None:
    """Interrupted between two evaluations, and right after one."""

    def run(name: str, **options: Any) -> None:
        envs, own = (tree_world(2, AutoresetMode.SAME_STEP) for _ in range(2))
        train(envs, config=config(), run_dir=tmp_path / name, eval_envs=own, **options)

    run("whole")
    for crash_after in (2, 3):
        with pytest.raises(RuntimeError, match="crash"):
            run("parts", callback=Snapshots(crash_after), resume=crash_after > 2)
    run("parts", resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert contents(tmp_path / "parts" / "best") == contents(tmp_path / "whole" / "best")


def test_a_process_that_dies_between_checkpoint_and_best_policy_loses_neither(tmp_path, monkeypatch) -> None:
    train(Wavering(), config=config(), run_dir=tmp_path / "whole", eval_envs=Wavering())

    def save_checkpoint(directory: Path, policy: Any, state: Mapping[str, Any]) -> None:
        if directory.name == "best" and state["update"] == 4:
            raise OSError("the disk is full")
        checkpoint(directory, policy, state)

    checkpoint = run_directory.save_checkpoint
    monkeypatch.setattr(run_directory, "save_checkpoint", save_checkpoint)
    run = {"run_dir": tmp_path / "parts", "config": config()}
    with pytest.raises(OSError, match="the disk is full"):
        train(Wavering(), eval_envs=Wavering(), **run)
    assert load_state(tmp_path / "parts" / "best")["update"] == 2
    monkeypatch.undo()
    train(Wavering(), eval_envs=Wavering(evaluations=2), resume=True, **run)
    assert load_state(tmp_path / "parts" / "best") == load_state(tmp_path / "whole" / "best")
    assert torch.equal(
        weights(load_bundle(run["run_dir"], best=True)), weights(load_bundle(tmp_path / "whole", best=True))
    )


def test_an_evaluation_that_fails_is_made_up_for_on_resume(tree_world, tmp_path: Path) -> None:
    """The update is kept, and not logged before its evaluation is there."""
    mode = AutoresetMode.SAME_STEP
    train(tree_world(2, mode), config=config(), run_dir=tmp_path / "whole", eval_envs=tree_world(2, mode))
    broken = tree_world(2, mode)
    resets: list[int] = []

    def reset(*, seed: int) -> Any:
        resets.append(seed)
        if len(resets) == 2:
            raise OSError("the simulator has died")
        return tree_world.reset(broken, seed=seed)

    broken.reset = reset
    run = {"config": config(), "run_dir": tmp_path / "parts"}
    with pytest.raises(OSError, match="the simulator has died"):
        train(tree_world(2, mode), eval_envs=broken, **run)
    assert len(rows(tmp_path / "parts")) == 3
    rest = train(tree_world(2, mode), eval_envs=tree_world(2, mode), resume=True, **run)
    assert [row["update"] for row in rest.metrics] == [4]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


# ---------------------------------------------------------------------- stopping


def test_a_run_stops_at_the_return_it_was_asked_for(tmp_path: Path) -> None:
    options = config(updates=8, stop_at_return=3.0)
    result = train(Wavering(), config=options, run_dir=tmp_path, eval_envs=Wavering())
    assert [row["update"] for row in result.metrics] == [1, 2, 3, 4]
    assert load_state(tmp_path / "checkpoint")["update"] == 4
    done = train(Wavering(), config=options, run_dir=tmp_path, eval_envs=Wavering(), resume=True)
    assert done.metrics == []
    further = config(updates=8, stop_at_return=4.0)
    assert train(Wavering(), config=further, run_dir=tmp_path, eval_envs=Wavering(2), resume=True).env_steps > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": 0}, "eval_every: expected at least 1, got 0"),
        ({"eval_episodes": 0}, "eval_episodes: expected at least 1, got 0"),
        ({"eval_every": None, "stop_at_return": 1.0}, "stop_at_return: .* say how often, with eval_every"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_environments_to_evaluate_on_are_asked_for() -> None:
    with pytest.raises(ValueError, match="eval_every: give the eval_envs to evaluate on, or an environment by its id"):
        train(gym.make_vec("CartPole-v1", 2), config=config())
    two = [gym.make_vec("CartPole-v1", 2) for _ in range(2)]
    with pytest.raises(ValueError, match="eval_envs: expected one vector environment, got 2"):
        train("CartPole-v1", config=config(), eval_envs=two)
    with pytest.raises(ValueError, match=r"environment 1 gives 1 features with 0 slots, but the policy reads 4"):
        train("CartPole-v1", config=config(), eval_envs=Wavering())
