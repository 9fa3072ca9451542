"""The command line as a user meets it."""

import subprocess
import sys

import pytest

import esper
from esper.actions import BLUEPRINT_NAMES
from esper.cli import main
from esper.tasks import TASKS


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"esper {esper.__version__}\n"


def test_the_installed_command_runs():
    result = subprocess.run([sys.executable, "-m", "esper", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"esper {esper.__version__}\n"


def test_listings_name_everything(capsys):
    assert main(["tasks"]) == 0
    tasks = capsys.readouterr().out
    assert all(name in tasks for name in TASKS)
    assert main(["blueprints"]) == 0
    blueprints = capsys.readouterr().out
    assert all(name in blueprints for name in BLUEPRINT_NAMES)


@pytest.mark.parametrize("command", ["train", "tasks", "blueprints"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert command in capsys.readouterr().out


def test_help_shows_defaults_and_units(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "points of score" in text
    assert "default: 0.02" in text


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["grwo"])
    assert stop.value.code == 2


def test_esper_ppo_is_a_command(tmp_path, capsys):
    assert main(["ppo", "--env", "esper/Locksmith-v0", "--total-steps", "64", "--num-steps", "8", "--num-envs", "4",
                 "--episodes", "2", "--quiet", "--run-dir", str(tmp_path / "run")]) == 0  # fmt: skip
    assert (tmp_path / "run" / "config.json").is_file()
    assert "over 2 episodes" in capsys.readouterr().out
