"""The training loop: repeatable, resumable, interruptible, and honest about what it leaves."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import TransformObservation

from esper.actions import HEADS
from esper.heads import Head, HeadTable
from esper.simic import Callback, NetworkOptions, Plan, PPOConfig, TrainConfig, evaluate, load_bundle, train
from esper.simic.control.normalization import RunningMeanStd
from esper.simic.spaces import EnvironmentAdapter, make_envs
from esper.simic.training.phases import PHASES, Phases
from esper.simic.training.run_directory import RunDirectory
from esper.simic.training.vectorized import Trainer
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from mortal import StopAfter

SMALL = NetworkOptions(hidden_dim=16, head_dim=8)
CLOCKS = {"steps_per_second", "seconds/waiting", *Phases().metrics()}


def config(**changes: Any) -> TrainConfig:
    short = {"updates": 4, "num_envs": 4, "num_steps": 16, "checkpoint_every": 2}
    return TrainConfig(**{**short, "network": SMALL, "ppo": PPOConfig(epochs=2, minibatches=2), **changes})


def comparable(rows: list[Mapping[str, float]]) -> list[dict[str, str]]:
    """Everything but the clock, NaN equal to NaN."""
    return [{name: repr(value) for name, value in row.items() if name not in CLOCKS} for row in rows]


def weights(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


# ---------------------------------------------------------------------- the same seed


def test_the_same_seed_gives_the_same_run_bit_for_bit(tree_world, mode) -> None:
    first, second, other = (train(tree_world(4, mode), config=config(seed=seed)) for seed in (1, 1, 2))
    assert comparable(first.metrics) == comparable(second.metrics)
    assert torch.equal(weights(first.policy), weights(second.policy))
    assert not torch.equal(weights(first.policy), weights(other.policy))


def test_the_run_does_not_touch_or_read_the_global_random_state(tree_world, mode) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(tree_world(4, mode), config=config())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(weights(first.policy), weights(train(tree_world(4, mode), config=config()).policy))


# ---------------------------------------------------------------------- resuming


def test_a_resumed_run_is_the_run_that_was_never_interrupted(tree_world, mode, tmp_path: Path) -> None:
    options = config(updates=7)
    whole = train(tree_world(4, mode), config=options, run_dir=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crash"):
        train(tree_world(4, mode), config=options, run_dir=tmp_path / "parts", callback=StopAfter(6))
    rest = train(tree_world(4, mode), config=options, run_dir=tmp_path / "parts", resume=True)
    assert [row["update"] for row in rest.metrics] == [7]
    assert comparable(rest.metrics) == comparable(whole.metrics[6:])
    assert torch.equal(weights(rest.policy), weights(whole.policy))
    assert rest.env_steps == whole.env_steps
    logged = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert comparable(logged[0]) == comparable(logged[1])
    assert [row["update"] for row in logged[1]] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_can_be_prolonged(tree_world, mode, tmp_path: Path) -> None:
    train(tree_world(4, mode), config=config(updates=2), run_dir=tmp_path)
    longer = train(tree_world(4, mode), config=config(updates=3), run_dir=tmp_path, resume=True)
    assert [row["update"] for row in longer.metrics] == [3]


def test_a_policy_of_ones_own_is_resumed_in_place(tree_world, mode, random_policy, tmp_path: Path) -> None:
    trainer = Trainer([tree_world(4, mode)], config())
    trained = train(tree_world(4, mode), config=config(), policy=trainer.policy, run_dir=tmp_path)
    assert trained.policy is trainer.policy
    fresh = Trainer([tree_world(4, mode)], config(seed=5)).policy
    resumed = train(tree_world(4, mode), config=config(), policy=fresh, run_dir=tmp_path, resume=True)
    assert resumed.policy is fresh
    assert torch.equal(weights(fresh), weights(trained.policy))


def test_environments_that_cannot_tell_their_state_are_reset_and_it_is_said(tmp_path: Path, caplog) -> None:
    train("CartPole-v1", config=config(updates=2), run_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        result = train("CartPole-v1", config=config(updates=3), run_dir=tmp_path, resume=True)
    assert "CartPole" in caplog.text
    assert "its episodes begin anew" in caplog.text
    assert [row["update"] for row in result.metrics] == [3]


def test_other_options_are_not_resumed_into(tree_world, mode, tmp_path: Path) -> None:
    train(tree_world(4, mode), config=config(updates=2), run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"started with seed=0, and is to be resumed with seed=1"):
        train(tree_world(4, mode), config=config(updates=2, seed=1), run_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="already holds a run; resume it"):
        train(tree_world(4, mode), config=config(updates=2), run_dir=tmp_path)
    with pytest.raises(ValueError, match="trained on TreeWorld, and is to be resumed on TreeWorld, TreeWorld"):
        train([tree_world(4, mode)] * 2, config=config(updates=3), run_dir=tmp_path, resume=True)


def test_a_run_of_another_environment_is_not_resumed_into(tmp_path: Path) -> None:
    train("CartPole-v1", config=config(updates=1), run_dir=tmp_path)
    again = {"config": config(updates=2), "run_dir": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"trained on CartPole-v1, and is to be resumed on esper/Locksmith-v0"):
        train("esper/Locksmith-v0", **again)
    envs = make_envs("CartPole-v1", 4)
    narrow = TransformObservation(envs, lambda x: x[:, :2], single_observation_space=spaces.Box(-9, 9, (2,)))
    with pytest.raises(ValueError, match=r"observation statistics in .* do not fit"):
        train(narrow, **again)


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the run_dir"):
        train("CartPole-v1", resume=True)
    with pytest.raises(ValueError, match="expected a run in"):
        train("CartPole-v1", run_dir=tmp_path, resume=True)


# ---------------------------------------------------------------------- interruption

SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {here!r})
    from conftest import TreeWorld
    from gymnasium.vector import AutoresetMode
    from esper.simic import Callback, NetworkOptions, PPOConfig, TrainConfig, train
    import time, torch

    class Slow(Callback):
        def on_step(self):
            time.sleep(0.002)
        def on_update(self, metrics):
            print("update", int(metrics["update"]), flush=True)

    torch.set_num_threads(1)
    small = NetworkOptions(hidden_dim=16, head_dim=8)
    ppo = PPOConfig(epochs=1, minibatches=2)
    config = TrainConfig(
        updates={updates}, num_steps=16, network=small, ppo=ppo, checkpoint_every={every}, overlap={overlap}
    )
    train(TreeWorld(4, AutoresetMode.NEXT_STEP), config=config, run_dir={run_dir!r}, callback=Slow(), resume={resume})
    """
)


def start(run_dir: Path, updates: int, every: int, *, resume: bool = False, overlap: bool = False) -> subprocess.Popen:
    """A training run in a process of its own."""
    here = str(Path(__file__).parent)
    code = SCRIPT.format(here=here, updates=updates, every=every, run_dir=str(run_dir), resume=resume, overlap=overlap)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=environment)


def wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    for seen in process.stdout:
        if seen.strip() == line:
            return
    raise AssertionError(f"the run ended before '{line}': {process.communicate()[1]}")


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overlap", [False, True])
def test_ctrl_c_leaves_a_checkpoint_of_the_last_update_to_go_on_from(tmp_path: Path, overlap) -> None:
    whole = start(tmp_path / "whole", updates=8, every=100, overlap=overlap)
    stopped = start(tmp_path / "parts", updates=8, every=100, overlap=overlap)
    wait_for(stopped, "update 4")
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=240)
    assert stopped.returncode not in (0, None)
    assert "Stopping after this step" in errors
    assert "KeyboardInterrupt: stopped after update" in errors
    last = rows(tmp_path / "parts")[-1]["update"]
    assert 4 <= last < 8
    resumed = start(tmp_path / "parts", updates=8, every=100, resume=True, overlap=overlap)
    assert resumed.stdout is not None
    assert resumed.stdout.readline() == f"update {int(last) + 1}\n"
    for process in (resumed, whole):
        assert process.wait(timeout=240) == 0
        process.communicate()
    assert comparable(rows(tmp_path / "parts")) == comparable(rows(tmp_path / "whole"))


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    import_and_hang = textwrap.dedent(
        """
        import time
        from esper.simic.training.interrupts import InterruptGuard
        with InterruptGuard() as guard:
            print("ready", flush=True)
            while not guard.requested:
                time.sleep(0.01)
            print("asked", flush=True)
            time.sleep(240)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", import_and_hang], stdout=pipe, stderr=pipe, text=True, env=environment
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    wait_for(process, "asked")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert time.monotonic() - began < 120
    assert "KeyboardInterrupt" in errors


def test_a_killed_run_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    process = start(tmp_path, updates=1000, every=1)
    wait_for(process, "update 7")
    process.kill()
    process.communicate()
    resumed = start(tmp_path, updates=int(rows(tmp_path)[-1]["update"]) + 2, every=1, resume=True)
    _, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, errors
    updates = [row["update"] for row in rows(tmp_path)]
    assert updates == list(range(1, len(updates) + 1))
    assert len(updates) >= 8


def test_trains_in_a_thread_that_cannot_handle_signals(tree_world) -> None:
    done: list[Any] = []
    thread = threading.Thread(
        target=lambda: done.append(train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=1)))
    )
    thread.start()
    thread.join()
    assert done


# ---------------------------------------------------------------------- several environments, callbacks, what is left


def test_several_vector_environments_are_learned_from_together(tree_world) -> None:
    """With different numbers of environments and different autoreset modes."""
    envs = [tree_world(3, AutoresetMode.SAME_STEP), tree_world(5, AutoresetMode.NEXT_STEP)]
    result = train(envs, config=config())
    assert result.env_steps == pytest.approx(5 * 16 * 8, rel=0.15)
    assert result.metrics[0]["first_ratio_error/verb"] < 1e-5
    assert result.metrics[0]["episode/score"] > 0


class SlotWorld(VectorEnv):
    """Noise that looks like growth with S slots; every fourth step ends an episode."""

    def __init__(self, num_slots: int, num_envs: int = 4) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "heads": HEADS.to_json()}
        self.single_observation_space = spaces.Dict(
            {
                "features": spaces.Box(-1, 1, (24 + 34 * num_slots,)),
                "blueprints": spaces.Box(-1, 12, (num_slots,), dtype=np.int64),
            }
        )
        self.single_action_space = spaces.Dict({h: spaces.Discrete(n) for h, n in HEADS.sizes(num_slots).items()})
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, actions):
        assert self.action_space.contains(actions)
        self.time += 1
        over = np.full(self.num_envs, self.time % 4 == 0)
        return self.observation_space.sample(), np.ones(self.num_envs), over, np.zeros_like(over), {}


def test_environments_with_different_numbers_of_slots_are_learned_from_together() -> None:
    envs = [SlotWorld(1), SlotWorld(3), SlotWorld(5, num_envs=2)]
    result = train(envs, config=config())
    assert result.env_steps == (4 + 1) * 16 * 10
    assert all(result.metrics[0][f"first_ratio_error/{head}"] < 1e-4 for head in HEADS.names)
    assert result.metrics[-1]["head_share/slot"] > 0
    slots_seen = (4 * 1 + 4 * 3 + 2 * 5) * 16 * (1 + config().updates)  # the first rollout only fills the statistics
    assert result.policy.network.standardizer.count[-1] == slots_seen


def test_a_normaliser_of_one_size_cannot_serve_several_numbers_of_slots() -> None:
    envs = [SlotWorld(1), SlotWorld(3)]
    policy = LSTMPolicyBundle(
        FactoredRecurrentActorCritic(state_dim=58, num_slots=1), observation_normalizer=RunningMeanStd((58,))
    )
    with pytest.raises(ValueError, match=r"give \[58, 126\] features, which no single statistic"):
        train(envs, config=config(), policy=policy)


def test_without_normalisation_the_network_takes_states_as_they_are() -> None:
    network = train([SlotWorld(3)], config=config(normalize_observations=False)).policy.network
    assert network.standardizer is None


def test_environments_must_fit_each_other_and_the_policy(tree_world, random_policy) -> None:
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="at least one vector environment"):
        train([])
    with pytest.raises(ValueError, match="do not fit the action space"):
        train("CartPole-v1", heads=HeadTable([Head("action", 3)]))
    cartpole, acrobot = make_envs("CartPole-v1", 2), make_envs("Acrobot-v1", 2)
    with pytest.raises(ValueError, match=r"environment 1 has the heads .*action"):
        train([envs, cartpole])
    with pytest.raises(ValueError, match="environment 1 gives 6 features with 0 slots, but the policy reads 4"):
        train([cartpole, make_with_two_actions(acrobot)])


def make_with_two_actions(envs):
    """Acrobot as if it had CartPole's actions: only its observation differs."""
    envs.single_action_space = make_envs("CartPole-v1", 1).single_action_space
    return envs


class Watcher(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_start(self, plan: Plan) -> None:
        self.seen.append(plan)

    def on_step(self) -> None:
        self.seen.append("step")

    def on_update(self, metrics: Mapping[str, float]) -> None:
        self.seen.append(metrics["update"])

    def on_end(self) -> None:
        self.seen.append("end")


def test_callbacks_hear_of_everything_in_order(tree_world) -> None:
    watcher = Watcher()
    options = config(updates=2, normalize_observations=False, normalize_rewards=False)
    train(tree_world(4, AutoresetMode.SAME_STEP), config=options, callback=watcher)
    plan, *rest = watcher.seen
    assert (plan.updates, plan.first_update, plan.vector_steps, plan.policy.heads.names[0]) == (2, 0, 16, "verb")
    assert rest == ["step"] * 16 + [1.0] + ["step"] * 16 + [2.0, "end"]


def test_a_run_directory_holds_everything(tree_world, tmp_path: Path) -> None:
    result = train(tree_world(4, AutoresetMode.SAME_STEP), config=config(), run_dir=tmp_path)
    assert {p.name.split(".")[0] for p in tmp_path.iterdir()} == {"config", "metrics", "events", "checkpoint", ""}
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["train"]["ppo"]["gamma"] == PPOConfig().gamma
    assert torch.equal(weights(load_bundle(tmp_path)), weights(result.policy))
    assert comparable(rows(tmp_path)) == comparable(
        [{k: None if math.isnan(v) else v for k, v in row.items()} for row in result.metrics]
    )


def test_metrics_reach_tensorboard(tree_world, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 (slow to load)

    train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=3), run_dir=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("entropy/verb")] == [1, 2, 3]
    assert {"episode/score", "seconds/policy", "processor_seconds/update"} <= set(events.Tags()["scalars"])


class Slow(gym.Wrapper):
    """Takes two milliseconds for a step, asleep."""

    def step(self, action):
        time.sleep(0.002)
        return super().step(action)


def test_every_row_tells_where_the_time_went() -> None:
    """On the clock a sleeping environment is seen, and on the processor it is not; the parts are the whole."""
    envs = SyncVectorEnv([lambda: Slow(gym.make("CartPole-v1"))], autoreset_mode=AutoresetMode.SAME_STEP)
    began = time.perf_counter()
    (row,) = train(envs, config=config(updates=1)).metrics
    whole = time.perf_counter() - began
    clock = {phase: row[f"seconds/{phase}"] for phase in PHASES}
    assert clock["environment"] > 0.002 * 16 > row["processor_seconds/environment"]
    assert all(clock[phase] > 0 < row[f"processor_seconds/{phase}"] for phase in PHASES)
    assert row["steps_per_second"] == pytest.approx(16 / sum(clock.values()))
    assert sum(clock.values()) < whole


def test_normalisers_are_filled_before_the_first_update_and_fixed_within_each(tree_world) -> None:
    """One rollout goes to the statistics; each later one is seen by the update as it was by the rollout."""
    result = train(tree_world(4, AutoresetMode.SAME_STEP), config=config(updates=3))
    assert result.env_steps == 4 * 4 * 16
    assert float(result.policy.observation_normalizer.count) == result.env_steps
    assert all(row["first_ratio_error/verb"] < 1e-5 for row in result.metrics)
    assert result.metrics[0]["reward_scale"] != 1.0


def test_statistics_are_those_of_the_observations_that_were_acted_on(tree_world, mode) -> None:
    """The final observation of an episode belongs to no step: under next-step autoreset its row is no data."""
    envs = tree_world(4, mode)
    result = train(envs, config=config(updates=3))
    acted_on = np.stack([row[0] for log in envs.log for row in log[:-1] if row[2] in ("start", "step")])
    normalizer = result.policy.observation_normalizer
    assert float(normalizer.count) == len(acted_on) == result.env_steps
    np.testing.assert_allclose(normalizer.mean, acted_on.mean(0), atol=1e-4)
    np.testing.assert_allclose(normalizer.var, acted_on.var(0), atol=1e-3)


def test_only_the_parts_that_are_named_are_normalised(tree_world, tmp_path: Path) -> None:
    """The clue, one-hot, stays as it is shown; who reads the policy back sees the same."""
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    policy = train(envs, config=config(normalize_keys=("seen",)), run_dir=tmp_path).policy
    shown = torch.cat([torch.eye(3), torch.randn(3, 5) * 4], dim=1)
    for each in (policy, load_bundle(tmp_path)):
        normalized = each.observation_normalizer.normalize(shown)
        assert torch.equal(normalized[:, :3], shown[:, :3])
        assert (normalized[:, 3:] != shown[:, 3:]).all()
    changed = config(updates=8, normalize_keys=("clue",))
    with pytest.raises(ValueError, match=r"started with normalize_keys=\('seen',\)"):
        train(tree_world(4, AutoresetMode.SAME_STEP), config=changed, run_dir=tmp_path, resume=True)


def test_parts_to_normalise_must_be_features(tree_world) -> None:
    envs = tree_world(2, AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match=r"that are features, \['clue', 'seen'\], got \['x'\]"):
        train(envs, config=config(normalize_keys=("x", "seen")))
    with pytest.raises(ValueError, match=r"normalize_keys=\('seen',\) choose among the features .* it is off"):
        train(envs, config=config(normalize_keys=("seen",), normalize_observations=False))


def test_evaluation_plays_every_environments_share(tree_world, random_policy) -> None:
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    policy = random_policy(EnvironmentAdapter(envs))
    result = evaluate(policy, envs, episodes=10, deterministic=False)
    assert result.returns.shape == result.lengths.shape == (10,)
    assert sorted(result.metrics["score"]) == [0.0] * 3 + [0.1] * 3 + [0.2] * 2 + [0.3] * 2
    again = evaluate(policy, tree_world(4, AutoresetMode.SAME_STEP), episodes=10, deterministic=False)
    assert result.returns.tolist() == again.returns.tolist()
    assert result.mean_return == pytest.approx(result.returns.mean())
    with pytest.raises(ValueError, match="episodes: expected at least 1"):
        evaluate(policy, envs, episodes=0)


def test_loading_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a run in"):
        load_bundle(tmp_path)


def test_damaged_checkpoints_are_named(tree_world, tmp_path: Path) -> None:
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    train(envs, config=config(updates=2), run_dir=tmp_path)
    tensors = tmp_path / "checkpoint" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    older = rf"state.safetensors' is truncated.*the one before it is whole: remove '{tmp_path}/checkpoint' to go on"
    with pytest.raises(ValueError, match=older):
        RunDirectory(tmp_path).resume(config(updates=2), "TreeWorld")
    shutil.rmtree(tmp_path / "checkpoint")
    assert RunDirectory(tmp_path).resume(config(updates=2), "TreeWorld")[1]["update"] == 0
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json' is damaged, or not JSON"):
        load_bundle(tmp_path)


def test_a_run_that_was_begun_before_an_option_was_there_goes_on(tree_world, tmp_path: Path) -> None:
    envs = tree_world(4, AutoresetMode.SAME_STEP)
    train(envs, config=config(updates=1), run_dir=tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["train"]["paired"], described["train"]["ppo"]["target_kl"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert train(envs, config=config(updates=2), run_dir=tmp_path, resume=True).metrics[-1]["update"] == 2
    for section, wrong, says in (
        ("train", None, "field 'train': expected the fields of a TrainConfig"),
        ("train", {"novel": 1}, "field 'train.novel' is unknown to this version"),
        ("train", {"ppo": {"epochs": "4"}}, "field 'train.ppo.epochs': expected int, got '4'"),
        ("train", {"num_envs": 0}, "field 'train': num_envs: expected at least 1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(described | {section: wrong}))
        with pytest.raises(ValueError, match=f"config.json': {says}"):
            train(envs, config=config(updates=2), run_dir=tmp_path, resume=True)
