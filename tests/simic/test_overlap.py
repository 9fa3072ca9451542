"""The next rollout while the policy learns from the last: one update old, and the same bits whatever takes how long."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from gymnasium.vector import AutoresetMode

from esper.simic import Callback, NetworkOptions, PPOConfig, TrainConfig, load_bundle, ppo, train
from esper.simic.spaces import make_envs
from esper.simic.training import vectorized
from esper.simic.training.callbacks import StopTraining
from esper.simic.training.phases import PHASES, Phases
from esper.simic.training.vectorized import Trainer
from mortal import StopAfter

CLOCKS = {"steps_per_second", "seconds/waiting", *Phases().metrics()}


def config(**changes) -> TrainConfig:
    short = {"updates": 4, "num_envs": 4, "num_steps": 8, "checkpoint_every": 2}
    network, learning = NetworkOptions(hidden_dim=16, head_dim=8), PPOConfig(epochs=1, minibatches=2)
    return TrainConfig(**{**short, "network": network, "ppo": learning, "overlap": True, **changes})


def comparable(rows) -> list[dict[str, str]]:
    """Everything but the clock, NaN equal to NaN."""
    return [{name: repr(value) for name, value in row.items() if name not in CLOCKS} for row in rows]


def weights(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


def logged(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


class Before:
    """Collects at once, so before the update that it is to run beside."""

    def __init__(self, work, should_stop) -> None:
        self.found = work(should_stop)

    def result(self):
        return self.found

    def abandon(self) -> None:
        pass


class After(Before):
    """Collects when the rollout is asked for, so after that update."""

    def __init__(self, work, should_stop) -> None:
        self.work, self.should_stop = work, should_stop

    def result(self):
        return self.work(self.should_stop)


def test_nothing_depends_on_what_takes_how_long(tree_world, monkeypatch) -> None:
    mode = AutoresetMode.SAME_STEP
    runs = [train(tree_world(4, mode), config=config())]
    for order in (Before, After):
        monkeypatch.setattr(vectorized, "Ahead", order)
        runs.append(train(tree_world(4, mode), config=config()))
    for run in runs[1:]:
        assert comparable(run.metrics) == comparable(runs[0].metrics)
        assert torch.equal(weights(run.policy), weights(runs[0].policy))
    apart = train(tree_world(4, mode), config=config(overlap=False))
    assert not torch.equal(weights(apart.policy), weights(runs[0].policy))


@pytest.mark.slow
def test_nothing_depends_on_where_environments_are_stepped() -> None:
    results = []
    for vectorization in ("sync", "async"):
        envs = make_envs("Acrobot-v1", 2, vectorization=vectorization)
        results.append(train(envs, config=config()))
        envs.close()
    assert comparable(results[0].metrics) == comparable(results[1].metrics)


def test_what_acts_is_the_policy_as_it_was_one_update_before(tree_world) -> None:
    """To it the first ratio is 1, its statistics and its scale of rewards included; to the policy it is not."""
    trainer = Trainer([tree_world(4, AutoresetMode.NEXT_STEP)], config())
    trainer.start(None, environment="", resume=False)
    trainer.update(trainer.collect())
    actor, before = trainer._actor, trainer.reward_scaler.scale
    second = trainer.collect()
    assert second.staleness == 1
    assert second.reward_scale == actor.reward_scale != before
    errors = []
    for policy in (actor.policy, trainer.policy):
        once = PPOConfig(epochs=1, minibatches=1)
        learned = ppo.update(policy, ppo.make_optimizer(policy, once), second.rollouts, once)
        errors.append(learned["first_ratio_error/verb"])
    assert errors[0] < 1e-5 < 1e-3 < errors[1]
    trainer.abandon()


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(tree_world, stopped_after, tmp_path: Path) -> None:
    mode = AutoresetMode.NEXT_STEP
    options = config()
    whole = train(tree_world(4, mode), config=options, run_dir=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(tree_world(4, mode), config=options, run_dir=tmp_path / "parts", callback=StopAfter(stopped_after))
    rest = train(tree_world(4, mode), config=options, run_dir=tmp_path / "parts", resume=True)
    assert [row["update"] for row in rest.metrics] == list(range(stopped_after + 1, 5))
    assert comparable(logged(tmp_path / "parts")) == comparable(logged(tmp_path / "whole"))
    assert torch.equal(weights(rest.policy), weights(whole.policy))
    assert rest.env_steps == whole.env_steps


def test_what_fails_on_the_thread_is_raised_after_the_update_and_nothing_is_lost(tree_world, tmp_path: Path) -> None:
    class Failing(Callback):
        steps = 0

        def on_step(self) -> None:
            self.steps += 1
            if self.steps == 8 * 3 + 5:  # the warm-up, two rollouts, and some of the third
                raise OSError("the cable came off")

    world, options = tree_world(4, AutoresetMode.SAME_STEP), config()
    with pytest.raises(OSError, match="the cable came off"):
        train(world, config=options, run_dir=tmp_path / "parts", callback=Failing())
    assert [row["update"] for row in logged(tmp_path / "parts")] == [1, 2]
    train(tree_world(4, AutoresetMode.SAME_STEP), config=options, run_dir=tmp_path / "parts", resume=True)
    train(tree_world(4, AutoresetMode.SAME_STEP), config=options, run_dir=tmp_path / "whole")
    assert comparable(logged(tmp_path / "parts")) == comparable(logged(tmp_path / "whole"))


def test_the_run_waits_for_its_thread_however_it_ends(tree_world, tmp_path: Path) -> None:
    class Stopping(Callback):
        def __init__(self) -> None:
            self.steps, self.ended = 0, 0

        def on_step(self) -> None:
            time.sleep(0.002)
            self.steps += 1

        def on_update(self, metrics: Mapping[str, float]) -> None:
            raise StopTraining

        def on_end(self) -> None:
            self.ended = self.steps

    stopping = Stopping()
    world = tree_world(4, AutoresetMode.SAME_STEP)
    result = train(world, config=config(num_steps=32), run_dir=tmp_path, callback=stopping)
    assert len(result.metrics) == 1
    time.sleep(0.02)
    assert stopping.steps == stopping.ended < 3 * 32
    assert torch.equal(weights(load_bundle(tmp_path)), weights(result.policy))


def test_rows_tell_that_it_is_on_and_what_was_waited_for(tree_world) -> None:
    class Slow(Callback):
        def on_step(self) -> None:
            time.sleep(0.02)

    result = train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=3), callback=Slow())
    assert [row["staleness"] for row in result.metrics] == [0, 1, 1]
    for row in result.metrics:
        whole = row["seconds/waiting"] + row["seconds/update"]
        assert row["steps_per_second"] == pytest.approx(4 * 8 / whole)
        assert row["seconds/copy"] > 0.02 * 8 > row["processor_seconds/copy"]
    first, second, _ = result.metrics
    collecting = sum(second[f"seconds/{phase}"] for phase in PHASES if phase != "update")
    assert second["seconds/waiting"] + 0.5 * first["seconds/update"] < collecting
    plain = train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=1, overlap=False))
    assert not {"staleness", "seconds/waiting"} & set(plain.metrics[0])


def test_whether_it_is_on_is_for_the_life_of_a_run(tree_world, tmp_path: Path) -> None:
    train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=1), run_dir=tmp_path)
    with pytest.raises(ValueError, match="was started with overlap=True, and is to be resumed with overlap=False"):
        train(tree_world(4, AutoresetMode.SAME_STEP), config=config(overlap=False), run_dir=tmp_path, resume=True)
