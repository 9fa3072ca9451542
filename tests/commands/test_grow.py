"""``esper grow`` from the command line."""

from __future__ import annotations

import json

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
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, tmp_path, capsys):
    assert main(["grow", *arguments, "--quiet", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
