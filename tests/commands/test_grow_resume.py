"""``esper grow`` that is stopped: what is kept is said, and it goes on to the same end."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esper.cli import main
from esper.commands import grow_run
from esper.commands.grow import read_options
from esper.commands.grow_run import CHECKPOINT, GrowRun
from events import read_events

EPOCHS = 6


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(int))
    return tmp_path / "mine.npz"


def run(data, out, *options):
    return main(["grow", "--data", str(data), "--epochs", str(EPOCHS), "--quiet", "--out", str(out), *options])


def stop_in_epoch(monkeypatch, number):
    """Ctrl-C in the middle of this epoch; a function that takes it back."""
    original, epochs = grow_run.train_one_epoch, []

    def stopped(*arguments):
        epochs.append(1)
        loss = original(*arguments)
        if len(epochs) == number:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(grow_run, "train_one_epoch", stopped)
    return lambda: monkeypatch.setattr(grow_run, "train_one_epoch", original)


def results(directory):
    found = json.loads((directory / "growth.json").read_text())
    for step in found["growth"]["steps"]:
        step["seconds"] = step["contribution_seconds"] = 0
    return found, torch.export.load(directory / "grown.pt2").state_dict


@pytest.mark.parametrize("policy", ["heuristic", "random", "tamiyo"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(data, tmp_path, capsys, monkeypatch, policy):
    control = ["--control"] * (policy == "random")
    assert run(data, tmp_path / "whole", "--policy", policy, *control) == 0
    go_on = stop_in_epoch(monkeypatch, 7 if control else 4)  # the host alone takes one each
    assert run(data, tmp_path / "stopped", "--policy", policy, *control) == 130
    said = capsys.readouterr().out
    assert f"Stopped after epoch 3 of {EPOCHS}. All is kept: `esper grow --resume {tmp_path / 'stopped'}`" in said
    go_on()
    assert main(["grow", "--resume", str(tmp_path / "stopped")]) == 0
    assert f"Going on after epoch 3 of {EPOCHS}" in capsys.readouterr().out
    (whole, weights), (stopped, others) = results(tmp_path / "whole"), results(tmp_path / "stopped")
    assert whole == stopped
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert not (tmp_path / "stopped" / CHECKPOINT).exists()


def test_trackers_are_told_of_every_step_also_by_a_run_that_goes_on(data, tmp_path, monkeypatch):
    rows = []
    client = SimpleNamespace(
        init=lambda **options: rows.append(("init", options["name"])) or client,
        log=lambda row, step: rows.append((step, row)),
        finish=lambda: rows.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, "wandb", client)
    go_on = stop_in_epoch(monkeypatch, 7)
    assert run(data, tmp_path / "mine", "--track", "wandb", "--control") == 130
    go_on()
    assert main(["grow", "--resume", str(tmp_path / "mine")]) == 0
    assert [step for step, _ in rows] == ["init", 1, 2, 3, "finish", "init", 4, 5, 6, 6, "finish"]
    found = json.loads((tmp_path / "mine" / "growth.json").read_text())
    logged = {step: row for step, row in rows[:-2] if isinstance(step, int)}
    assert [logged[step]["growth/score"] for step in range(1, 7)] == [s["score"] for s in found["growth"]["steps"]]
    assert [logged[step]["host_alone_score"] for step in range(1, 7)] == found["growth"]["control"]["scores"]
    verdict, files = rows[-2][1], read_events(tmp_path / "mine")
    assert verdict["growth/verdict"] == found["growth"]["verdict"]["words"]
    assert (verdict["growth/J"], verdict["test_score"]) == (found["growth"]["J"], found["test_score"])
    scores = files["growth/score"]
    assert [step for step, _ in scores] == list(range(1, 7))
    assert [score for _, score in scores] == pytest.approx([s["score"] for s in found["growth"]["steps"]])
    assert files["growth/verdict/text_summary"] == [(6, verdict["growth/verdict"])]


def test_stopped_before_one_epoch_nothing_is_kept_and_nothing_is_left(data, tmp_path, capsys, monkeypatch):
    stop_in_epoch(monkeypatch, 1)
    assert run(data, tmp_path / "run") == 130
    assert "Stopped before the end of the first epoch: nothing has been kept." in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_options_are_written_and_read_again(data, tmp_path, monkeypatch):
    stop_in_epoch(monkeypatch, 2)
    run(data, tmp_path / "run", "--budget", "700", "--held-out", "0.3", "--learning-rate", "0.01")
    options = read_options(tmp_path / "run")
    assert (options.budget, options.read.held_out, options.learning_rate) == (700, 0.3, 0.01)
    assert (options.data, options.epochs) == (data, EPOCHS)


def test_a_state_that_did_not_get_written_is_the_one_before(data, tmp_path, monkeypatch):
    original, saved = GrowRun.save, []

    def save(self, directory):
        saved.append(1)
        if len(saved) == 3:
            monkeypatch.setattr(torch, "save", lambda state, path: (path.write_bytes(b"half"), 1 / 0))
        original(self, directory)

    monkeypatch.setattr(GrowRun, "save", save)
    with pytest.raises(ZeroDivisionError):
        run(data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["epochs_done"] == 2


def test_refuses_other_data(data, tmp_path, capsys, monkeypatch):
    go_on = stop_in_epoch(monkeypatch, 3)
    run(data, tmp_path / "run")
    go_on()
    arrays = dict(np.load(data))
    np.savez(data, x=arrays["x"] + np.arange(6), y=1 - arrays["y"])
    assert main(["grow", "--resume", str(tmp_path / "run")]) == 2
    assert "the data are not those that the run began with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a run of `esper grow`"), ("[]", "not the options of `esper grow`"), ("{", "not the options")],
)
def test_refuses_what_is_no_run(tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "command.json").write_text(content)
    assert main(["grow", "--resume", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_done_has_nothing_to_go_on_with(data, tmp_path, capsys):
    run(data, tmp_path / "run")
    assert main(["grow", "--resume", str(tmp_path / "run")]) == 2
    assert "the run is done" in capsys.readouterr().err
