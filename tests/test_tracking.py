"""Metrics reach every tracker that was asked for, by the calls that its own client documents."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from types import ModuleType

import pytest

from esper.cli import main
from esper.simic import TrainConfig, train
from esper.tracking import TRACKERS, TensorBoard, Tracking, check_trackers
from events import read_events

GROW = ("grow", "--task", "wine", "--policy", "heuristic", "--epochs", "4", "--quiet", "--track")


class Client(ModuleType):
    """What a client is asked to do."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


@pytest.fixture
def clients(monkeypatch):
    made = {name: Client(name) for name in TRACKERS}
    for name, client in made.items():
        monkeypatch.setitem(sys.modules, name, client)
    return made


def test_every_tracker_is_told_of_options_and_of_each_row(clients, tmp_path):
    config = TrainConfig(updates=2, num_envs=2, num_steps=4, track=tuple(TRACKERS))
    result = train("CartPole-v1", config=config, run_dir=tmp_path / "mine")
    rows = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in result.metrics] == [1, 2]
    expected = [{k: v for k, v in row.items() if v is not None and k != "update"} for row in rows]
    for name in ("wandb", "trackio"):
        (begun, _, options), *logged, (ended, _, _) = clients[name].calls
        assert (begun, options["project"], options["name"]) == ("init", "esper", "mine")
        assert options["config"]["num_envs"] == 2
        assert logged == [("log", (row,), {"step": i}) for i, row in enumerate(expected, start=1)]
        assert ended == "finish"
    calls = clients["mlflow"].calls
    assert [name for name, _, _ in calls] == [
        "set_experiment",
        "start_run",
        "log_params",
        "log_metrics",
        "log_metrics",
        "end_run",
    ]
    assert calls[2][1][0]["ppo.gamma"] == "0.99"
    assert [call[1:] for call in calls[3:5]] == [((row,), {"step": i}) for i, row in enumerate(expected, start=1)]


def test_what_is_not_finite_is_left_out(clients):
    tracking = Tracking(("wandb",), "run", {})
    tracking.log({"a": 1.0, "b": float("nan"), "c": None}, 3)
    assert clients["wandb"].calls[-1] == ("log", ({"a": 1.0},), {"step": 3})


def test_texts_are_files_to_mlflow_and_entries_to_the_others(clients, tmp_path):
    tracking = Tracking(tuple(TRACKERS), "run", {}, TensorBoard(tmp_path))
    tracking.log({"a": 1.0, "said": "so"}, 3)
    tracking.finish()
    for name in ("wandb", "trackio"):
        assert clients[name].calls[1] == ("log", ({"a": 1.0, "said": "so"},), {"step": 3})
    assert clients["mlflow"].calls[3:5] == [
        ("log_metrics", ({"a": 1.0},), {"step": 3}),
        ("log_text", ("so", "said/3.txt"), {}),
    ]
    assert read_events(tmp_path) == {"a": [(3, 1.0)], "said/text_summary": [(3, "so")]}


def test_without_a_row_tensorboard_leaves_nothing(tmp_path):
    TensorBoard(tmp_path / "run").finish()
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_tracked_is_said_before_anything_is_written(clients, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match="--track mlflow needs its package: pip install mlflow"):
        train("CartPole-v1", config=TrainConfig(track=("mlflow",)), run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="expected trackers out of wandb, mlflow, trackio, got 'comet'"):
        check_trackers(("comet",))
    with pytest.raises(ValueError, match="give its run_dir"):
        train("CartPole-v1", config=TrainConfig(track=("wandb",), updates=1))
    assert not (tmp_path / "run").exists()


def grow_tracked(tracker, directory, **environment):
    """A growth in a process of its own, as clients write on until theirs ends."""
    pytest.importorskip(tracker)
    command = [sys.executable, "-m", "esper", *GROW, tracker, "--out", "run"]
    subprocess.run(command, env=os.environ | environment, cwd=directory, check=True, capture_output=True)


def test_weights_and_biases_keeps_a_growth_offline(tmp_path):
    grow_tracked("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    held = file.read_bytes()
    for name in (b"growth/added_params", b"growth/contribution/block", b"growth/verdict", b"test_score"):
        assert name in held


def test_mlflow_keeps_a_growth_in_a_database_of_ones_own(tmp_path):
    grow_tracked("mlflow", tmp_path, MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        steps = dict(database.execute("select key, count(*) from metrics group by key"))
    assert (steps["growth/score"], steps["growth/J"], steps["test_score"]) == (4, 1, 1)
    assert list(tmp_path.glob("mlruns/*/*/artifacts/growth/verdict/4.txt"))


def test_trackio_keeps_a_growth_on_this_machine(tmp_path):
    grow_tracked("trackio", tmp_path, TRACKIO_DIR=str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "esper.db")) as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics order by step")]
    assert sum("growth/score" in row for row in rows) == 4
    assert sum("growth/verdict" in row for row in rows) == 1


def test_a_client_that_cannot_begin_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    broken = ModuleType("mlflow")
    broken.set_experiment = Client("mlflow")  # not callable, as where a client has changed
    monkeypatch.setitem(sys.modules, "mlflow", broken)
    assert main([*GROW, "mlflow", "--out", str(tmp_path / "run")]) == 2
    assert "esper: --track mlflow: its client could not begin, TypeError" in capsys.readouterr().err
