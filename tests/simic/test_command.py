"""``esper ppo``, as it is called from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from esper.simic import TrainConfig
from esper.simic.command import PPOCommand, main

SMALL = ["--updates", "2", "--num-envs", "2", "--num-steps", "16", "--network.hidden-dim", "8", "--episodes", "3"]


def call(*arguments: str) -> int:
    return main(tyro.cli(PPOCommand, args=list(arguments)))


def test_trains_evaluates_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--env", "esper/Locksmith-v0", "--run-dir", str(tmp_path / "run")]
    assert call(*run, *SMALL) == 0
    output = capsys.readouterr().out
    assert "update 2/2" in output
    assert "over 3 episodes" in output
    assert call(*run, "--evaluate-only", *SMALL) == 0
    assert "update" not in capsys.readouterr().out
    assert call(*run, "--resume", *SMALL, "--updates", "3") == 0
    assert "update 3/3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchThing-v0"], "NoSuchThing"),
        (["--env", "Pendulum-v1"], "continuous actions are not supported"),
        (["--env", "CartPole-v1", "--evaluate-only"], "--evaluate-only needs the --run-dir"),
        (["--env", "CartPole-v1", "--resume"], "needs the run_dir"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors


def test_ctrl_c_is_status_130_and_says_how_to_go_on(monkeypatch, tmp_path: Path, capsys) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("esper.simic.command.train", interrupted)
    assert call("--env", "CartPole-v1", "--run-dir", str(tmp_path)) == 130
    assert f"--run-dir {tmp_path} --resume" in capsys.readouterr().err


def test_every_option_of_a_run_has_a_flag() -> None:
    command = tyro.cli(PPOCommand, args=["--env", "X", "--ppo.gamma", "0.5", "--network.no-recurrent", "--seed", "3"])
    assert command.train == TrainConfig(seed=3, ppo=command.train.ppo, network=command.train.network)
    assert command.train.ppo.gamma == 0.5
    assert not command.train.network.recurrent
