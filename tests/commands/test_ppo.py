"""``esper ppo``, as it is called from the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tyro
from rich.console import Console

from esper.commands.ppo import PPOCommand
from esper.simic import TrainConfig

SMALL = ["--updates", "2", "--num-envs", "2", "--num-steps", "16", "--network.hidden-dim", "8", "--episodes", "3"]


def call(*arguments: str) -> str:
    """What the command prints."""
    output = io.StringIO()
    tyro.cli(PPOCommand, args=list(arguments)).run(Console(file=output, width=200))
    return output.getvalue()


def test_trains_evaluates_and_resumes(tmp_path: Path) -> None:
    run = ["--env", "esper/Locksmith-v0", "--run-dir", str(tmp_path / "run")]
    trained = call(*run, *SMALL)
    assert "update 2/2" in trained
    assert "over 3 episodes" in trained
    played = call(*run, "--evaluate-only", *SMALL)
    assert played == trained.splitlines()[-1] + "\n"
    assert "update 3/3" in call(*run, "--resume", *SMALL, "--updates", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchThing-v0"], "environment 'NoSuchThing-v0'"),
        (["--env", "no_such_module:Thing-v0"], "No module named 'no_such_module'; expected module:Id-v0"),
        (["--env", "CartPole-v1", "--evaluate-only"], "--evaluate-only needs the --run-dir"),
        (["--env", "CartPole-v1", "--resume"], "needs the run_dir"),
    ],
)
def test_bad_input_is_a_value_error(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*arguments)


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path: Path) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("esper.commands.ppo.train", interrupted)
    output = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        PPOCommand("CartPole-v1", run_dir=tmp_path).run(Console(file=output, width=200))
    assert f"--run-dir {tmp_path} --resume" in output.getvalue()


def test_every_option_of_a_run_has_a_flag() -> None:
    command = tyro.cli(PPOCommand, args=["--env", "X", "--ppo.gamma", "0.5", "--network.no-recurrent", "--seed", "3"])
    assert command.train == TrainConfig(seed=3, ppo=command.train.ppo, network=command.train.network)
    assert command.train.ppo.gamma == 0.5
    assert not command.train.network.recurrent
