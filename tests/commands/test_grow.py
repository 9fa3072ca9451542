"""``esper grow`` from the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esper.cli import main
from esper.commands.grow import GrowCommand
from esper.commands.grow_run import GrowRun, HostAlone
from esper.tasks import get_task


def test_grow_on_ones_own_arrays(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(int))
    out = tmp_path / "run"
    options = ["--host", "auto", "--epochs", "8", "--budget", "900", "--quiet", "--out", str(out)]
    assert main(["grow", "--data", str(tmp_path / "mine.npz"), *options]) == 0
    printed = capsys.readouterr().out
    for words in ("GERMINATE", "Test accuracy:", "Contributions:", "Verdict:", "Written:"):
        assert words in printed, words
    assert len(list(out.glob("events.out.tfevents.*"))) == 1
    assert {file.name for file in out.iterdir() if "tfevents" not in file.name} == {
        "command.json",
        "growth.json",
        "growth.png",
        "grown.pt2",
        "manifest.json",
    }
    results = json.loads((out / "growth.json").read_text())
    assert results["growth"]["added_params"] <= 900
    assert len(results["growth"]["steps"]) == 8
    assert results["growth"]["finished"]
    assert torch.export.load(out / "grown.pt2").module()(torch.zeros(3, 6)).shape == (3, 2)


def test_grow_says_when_nothing_was_kept(tmp_path, capsys):
    options = ["--policy", "wait", "--epochs", "2", "--quiet", "--out", str(tmp_path / "run")]
    assert main(["grow", "--task", "wine", *options]) == 0
    assert "the model is the host alone" in capsys.readouterr().out


# ---------------------------------------------------------------------- the host alone, beside it


def grow(**options):
    """A run on wine in which something grows, and its result without times."""
    options = GrowCommand(**{"task": "wine", "epochs": 6, "learning_rate": 0.02, "rent": 0.0} | options)
    run = GrowRun(options, options.build_task())
    while run.epochs_done < options.epochs:
        run.epoch()
    run.growth.history = [replace(step, seconds=0.0, contribution_seconds=0.0) for step in run.growth.history]
    return run, run.result()


def test_the_host_alone_beside_it_changes_no_bit_of_the_growth():
    (run, alone), (other, beside) = grow(), grow(control=True)
    assert alone.steps == beside.steps
    assert alone.added_params > 0
    weights, others = run.growth.grown_model().state_dict(), other.growth.grown_model().state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert alone.control is None
    assert "estimated" in alone.verdict.words


def test_the_host_alone_is_what_a_run_that_grows_nothing_comes_to():
    (run, beside), (_, waiting) = grow(control=True), grow(policy="wait")
    assert beside.control is not None
    assert beside.control.scores == [step.score for step in waiting.steps]
    assert beside.control.difference == beside.score - waiting.score
    assert beside.verdict.host_J == pytest.approx(waiting.J)
    with torch.no_grad():
        output = run.control.model.eval()(run.splits.test_x)
    assert beside.control.test_score == float(run.task.score(output, run.splits.test_y))


def test_a_host_that_draws_has_a_random_state_of_its_own():
    torch.manual_seed(0)
    task = get_task("wine")
    model = nn.Sequential(nn.Dropout(0.5), task.build_host())
    control = HostAlone(model, 0.01, GrowCommand())
    splits, before = task.splits(), torch.get_rng_state()
    weights = []
    for _ in range(2):
        control.epoch(task, splits, torch.arange(64))
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(control._random.clone())
    assert not torch.equal(*weights), "its own goes on"


def test_what_it_cost_is_counted_as_it_was():
    _, result = grow(policy="fixed")
    compute, trained = result.compute, 106 // 32 * 32
    assert {seed.blueprint for seed in result.seeds} == {"squeeze_excite"}
    assert {seed.fate for seed in result.seeds} == {"kept at 6", "pruned at 6"}
    flops = max(seed.flops for seed in result.seeds)
    lived = [6 - seed.germinated for seed in result.seeds]
    stayed = [6 - seed.germinated for seed in result.seeds if seed.params]
    assert compute.host == 3 * trained * 6 * result.host_flops
    assert compute.kept == 3 * trained * flops * sum(stayed)
    assert compute.gone == 3 * trained * flops * (sum(lived) - sum(stayed))
    extra = [
        (step.evaluations - 1, sum(kind is not None for _, kind, _ in step.slots.values())) for step in result.steps
    ]
    assert compute.measuring == 36 * sum(count * (result.host_flops + seeds * flops) for count, seeds in extra)
    assert compute.auditions == 0
    assert grow(policy="audition")[1].compute.auditions > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mnist2d"], "unknown task 'mnist2d'; did you mean 'mnist1d'"),
        (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
        (["--policy", "heuristics"], "did you mean 'heuristic'"),
        (["--budget", "1"], "no blueprint is within budget=1"),
        (["--flops-budget", "0", "--budget", "31"], "flops_budget=0"),
        (["--task", ""], "unknown task ''"),
        (["--learning-rate", "0"], "--learning-rate must be a finite number above 0, got 0"),
        (["--learning-rate", "inf"], "--learning-rate must be a finite number above 0, got inf"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number above 0, got nan"),
        (["--rent", "inf"], "rent"),
        (["--epochs", "1"], "--epochs must be 2 or more"),
        (["--width", "0"], "--width must be a finite number above 0"),
        (["--depth", "0"], "--depth must be 1 or more, got 0"),
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (["--batch-size", "100000"], "fewer than one batch of 100000"),
        (["--held-out", "0.5"], "--held-out is a share between 0 and 0.5"),
        (["--held-out", "nan"], "--held-out is a share between 0 and 0.5"),
        (["--most-gigabytes", "0"], "--most-gigabytes must be above 0"),
        (["--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["--device", "tpu"], "--device tpu cannot be used here"),
        (["--device", ""], "--device '' cannot be used here"),
    ],
)
def test_bad_arguments_end_in_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    assert main(["grow", *arguments, "--quiet", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_option_that_comes_near_is_looked_for_in_the_command_at_hand(capsys):
    with pytest.raises(SystemExit):
        main(["grow", "--learning-rat", "0.1"])
    said = capsys.readouterr()
    assert "--learning-rate" in said.out + said.err
    assert "esper grow --help" in said.out + said.err
    assert "esper train" not in said.out + said.err


def test_data_that_cannot_be_used_leave_nothing(tmp_path, capsys):
    (tmp_path / "mine.npz").write_bytes(b"no archive")
    assert main(["grow", "--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "run")]) == 2
    assert "not a readable .npz file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "option", "said"),
    [
        (
            "mine.npz",
            ["--target", "y"],
            "mine.npz: --target names a column of a table (.csv, .tsv, .parquet); leave it out",
        ),
        ("mine.npz", ["--window", "32"], "mine.npz: --window is the length of a sample of a text (.txt); leave it out"),
        ("mine.npz", ["--image-side", "32"], "mine.npz: --image-side is that of images in folders; leave it out"),
        ("mine.txt", ["--predict", "values"], "mine.txt: --predict is not for a text, which is bytes; leave it out"),
        ("mine.txt", ["--no-standardise"], "mine.txt: --standardise is not for a text, which is bytes; leave it out"),
        (None, ["--target", "y", "--held-out", "0.1"], "--target, --held-out: the data of a task are read as they are"),
    ],
)
def test_an_option_that_such_data_would_ignore_is_refused(file, option, said, tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", x=np.ones((9, 2)), y=np.arange(9) % 3)
    (tmp_path / "mine.txt").write_text("so it is " * 99)
    data = [] if file is None else ["--data", str(tmp_path / file)]
    assert main(["grow", *data, *option, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_packages_for_the_export_are_missed_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["grow", "--export", "onnx", "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'esper-lite[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
