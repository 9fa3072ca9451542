"""A Tamiyo is trained from Python, without the command line, and comes out as from the command."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from esper.cli import main
from esper.env.episode import Variants
from esper.simic import NetworkOptions, PPOConfig
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.registry import SHIPPED
from esper.tasks import TASKS, Wine
from esper.training import OP_SHARES, TamiyoConfig, Watcher, compare_controllers, resume_tamiyo, train_tamiyo


class QuickWine(Wine):
    """Wine with three decisions of two batches."""

    name = "quick_wine"
    horizon, steps_per_decision, batch_size = 3, 2, 16


@pytest.fixture(autouse=True)
def _quick_task(monkeypatch):
    monkeypatch.setitem(TASKS, "quick_wine", QuickWine)


QUICK = TamiyoConfig(task=("quick_wine",), num_envs=2, updates=1, eval_episodes=2, num_workers=1)


class Log(Watcher):
    """Everything that a watcher is told."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.evaluations: list[list[object]] = []

    def on_update(self, metrics):
        self.updates.append(metrics["update"])

    def on_evaluation(self, purpose, batches):
        self.evaluations.append([purpose, batches, 0, "open"])

    def on_decision(self, decision, horizon):
        assert 1 <= decision <= horizon
        self.evaluations[-1][2] += 1

    def on_evaluation_end(self):
        self.evaluations[-1][3] = "ended"


def same_weights(a: LSTMPolicyBundle, b: LSTMPolicyBundle) -> bool:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_library_trains_what_the_command_trains(tmp_path):
    trained = train_tamiyo(QUICK)
    arguments = ["--task", "quick_wine", "--num-envs", "2", "--updates", "1", "--eval-episodes", "2"]
    assert main(["train", *arguments, "--num-workers", "1", "--quiet", "--out", str(tmp_path / "run")]) == 0
    of_command = LSTMPolicyBundle.load(tmp_path / "run" / "policy")
    assert same_weights(trained.policy, of_command)
    assert trained.policy.op_share == of_command.op_share
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "without a run directory nothing is written"


def test_it_decides_as_was_best_on_validation_episodes():
    trained = train_tamiyo(QUICK)
    assert tuple(trained.objectives) == OP_SHARES
    assert np.isfinite(list(trained.objectives.values())).all()
    assert trained.objectives[trained.policy.op_share] == max(trained.objectives.values())
    assert len(trained.metrics) == 1


def test_a_watcher_follows_training_and_evaluations():
    log = Log()
    table = compare_controllers(train_tamiyo(QUICK, watcher=log), watcher=log)
    assert log.updates == [1]
    assert log.evaluations == [["validation", 3, 9, "ended"], ["test", 6, 18, "ended"]]
    assert table.tasks == ["quick_wine"]
    assert len(table.select("quick_wine", "Tamiyo")) == 2


def test_an_evaluation_that_is_stopped_is_ended_for_its_watcher():
    class Stops(Log):
        def on_decision(self, decision, horizon):
            raise KeyboardInterrupt

    log = Stops()
    with pytest.raises(KeyboardInterrupt):
        train_tamiyo(QUICK, watcher=log)
    assert log.evaluations == [["validation", 3, 0, "ended"]]


def test_a_run_goes_on_from_its_directory(tmp_path):
    class Stops(Watcher):
        def on_update(self, metrics):
            raise KeyboardInterrupt  # before the first checkpoint

    with pytest.raises(KeyboardInterrupt):
        train_tamiyo(QUICK, run_dir=tmp_path / "run", watcher=Stops())
    resumed = resume_tamiyo(tmp_path / "run")
    assert resumed.config == QUICK
    assert same_weights(resumed.policy, train_tamiyo(QUICK).policy)
    assert same_weights(resumed.policy, LSTMPolicyBundle.load(tmp_path / "run" / "policy"))


def test_a_run_goes_on_elsewhere_when_its_cluster_is_gone(tmp_path):
    """Its workers are those that it is resumed with, now and when it is resumed again."""
    pytest.importorskip("ray")
    config = dataclasses.replace(QUICK, num_workers=None, ray_workers=2, address="127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:1'"):
        train_tamiyo(config, run_dir=tmp_path)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at '127.0.0.1:2'"):
        resume_tamiyo(tmp_path, address="127.0.0.1:2")  # as many workers as before
    with pytest.raises(ValueError, match="num_workers must be 1 or more, got 0"):
        resume_tamiyo(tmp_path, num_workers=0)
    for options in ({"num_workers": 1}, {}):
        resumed = resume_tamiyo(tmp_path, **options)
        assert resumed.config == QUICK
    assert same_weights(resumed.policy, train_tamiyo(QUICK).policy)


def test_sizes_beside_a_policy_that_has_its_own_are_refused():
    config = dataclasses.replace(QUICK, policy="tamiyo", network=NetworkOptions(hidden_dim=16, probability_floor=0.002))
    with pytest.raises(ValueError, match=r"^network.hidden_dim = 16: the policy 'tamiyo' keeps its network"):
        train_tamiyo(config)


def test_a_run_never_begins_over_what_is_there(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not empty.*resume"):
        train_tamiyo(QUICK, run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileNotFoundError, match="expected the directory of an `esper train` run"):
        resume_tamiyo(tmp_path)


def test_every_option_survives_the_run_directory(tmp_path):
    config = TamiyoConfig(
        task=("wine", "spirals"),
        num_envs=3,
        updates=4,
        seed=5,
        rent=0.01,
        waste=0.02,
        budget=700,
        policy=str(SHIPPED),
        variants=Variants(rent=(0.01, 0.05), interval=(0.5, 3.0)),
        paired=True,
        num_workers=2,
        eval_episodes=6,
        ppo=PPOConfig(gamma=0.9, epochs=3),
        network=NetworkOptions(hidden_dim=16, probability_floor={"op": 0.01}),
    )
    config.save(tmp_path)
    assert TamiyoConfig.load(tmp_path) == config
    assert TamiyoConfig(policy="tamiyo").begins_with == SHIPPED


def test_tasks_of_different_horizons_are_trained_together_where_episodes_draw_theirs():
    TamiyoConfig(task=("wine", "quick_wine"), variants=Variants(horizon=(3.0, 5.0))).check()


def test_options_that_make_no_sense_are_refused_before_anything_is_written(tmp_path):
    for wrong, message in (
        ({"updates": 0}, "updates must be 1 or more, got 0"),
        ({"waste": -1.0}, "waste"),
        ({"task": ("wine", "quick_wine")}, "the same horizon"),
        ({"policy": str(tmp_path / "nowhere")}, "nowhere"),
        ({"policy": "heuristic"}, "a rule, which cannot learn"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tamiyo(TamiyoConfig(**wrong), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
