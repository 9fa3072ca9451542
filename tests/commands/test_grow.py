"""``esper grow`` from the command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from esper.cli import main


def test_grow_on_ones_own_arrays(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(int))
    out = tmp_path / "run"
    options = ["--host", "auto", "--epochs", "8", "--budget", "900", "--quiet", "--out", str(out)]
    assert main(["grow", "--data", str(tmp_path / "mine.npz"), *options]) == 0
    printed = capsys.readouterr().out
    for words in ("GERMINATE", "Test accuracy:", "Contributions:", "Written:"):
        assert words in printed, words
    assert {file.name for file in out.iterdir()} == {
        "command.json",
        "growth.json",
        "growth.png",
        "grown.pt2",
        "manifest.json",
    }
    results = json.loads((out / "growth.json").read_text())
    assert results["added_params"] <= 900
    assert len(results["record"]["scores"]) == 8
    assert torch.export.load(out / "grown.pt2").module()(torch.zeros(3, 6)).shape == (3, 2)


def test_grow_says_when_nothing_was_kept(tmp_path, capsys):
    options = ["--policy", "wait", "--epochs", "2", "--quiet", "--out", str(tmp_path / "run")]
    assert main(["grow", "--task", "wine", *options]) == 0
    assert "the model is the host alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "mnist2d"], "unknown task 'mnist2d'; did you mean 'mnist1d'"),
        (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
        (["--policy", "heuristics"], "did you mean heuristic"),
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


def test_an_option_for_tables_is_refused_where_there_is_none(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", x=np.ones((9, 2)), y=np.arange(9) % 3)
    assert main(["grow", "--data", str(tmp_path / "mine.npz"), "--target", "y", "--out", str(tmp_path / "run")]) == 2
    assert "--target names a column of a table" in capsys.readouterr().err


def test_packages_for_the_export_are_missed_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["grow", "--export", "onnx", "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'esper-lite[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
