"""The command line as a user meets it."""

import importlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import esper
from esper.actions import BLUEPRINT_NAMES
from esper.cli import COMMANDS, main
from esper.commands.resuming import resumable
from esper.tasks import TASKS


@pytest.mark.parametrize(
    ("command", "ignored", "used"),
    [
        ("train", ["--updates", "10"], "--num-workers, --ray-workers, --address, --quiet"),
        ("train", ["--out=elsewhere", "--ppo.learning-rate", "1e-4"], "--num-workers"),
        ("compare", ["--rent", "0.1"], "--seeds, --workers, --ray-workers, --address, --quiet"),
        ("grow", ["--epochs", "90", "--no-control"], "--quiet"),
    ],
)
def test_options_that_a_resumed_run_would_ignore_are_refused(command, ignored, used, tmp_path, capsys):
    assert main([command, "--resume", str(tmp_path), "--quiet", *ignored]) == 2
    said = capsys.readouterr().err
    names = ", ".join(option.split("=")[0] for option in ignored if option.startswith("--"))
    assert f"{names}: with --resume this is read from {tmp_path}" in said
    assert used in said
    assert said.count("\n") == 1


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


@pytest.mark.parametrize("name", COMMANDS)
def test_the_overview_says_of_each_command_what_its_docstring_says(name, capsys):
    home, summary = COMMANDS[name]
    module, command = home.split(":")
    docstring = inspect.getdoc(getattr(importlib.import_module(module), command))
    assert summary == docstring.splitlines()[0]
    assert main(["--help"]) == 0
    assert f"  {name:10}  {summary}\n" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_front_answers_without_torch(option):
    """What takes seconds to import is imported by the command that needs it."""
    command = [sys.executable, "-X", "importtime", "-m", "esper", option]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "esper" in imported
    assert not imported & {"torch", "matplotlib", "scipy", "sklearn", "tensorboard"}


def test_without_a_command_there_is_the_overview_and_exit_code_2(capsys):
    assert main([]) == 2
    assert "usage: esper COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert command in text
    assert not re.findall(r"``|:(?:attr|class|data|func|meth|mod):", text)  # that is for pages


def test_help_shows_defaults_and_units(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "points of score" in text
    assert "default: 0.02" in text


@pytest.mark.parametrize(
    ("name", "hint"), [("grwo", "did you mean 'grow'?"), ("xyz", "`esper --help`"), ("--quiet", "`esper --help`")]
)
def test_an_unknown_command_is_refused_with_the_nearest_names(name, hint, capsys):
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert f"got '{name}'" in error
    assert hint in error
    assert error.count("\n") == 1


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tasks", "--quick"])
    assert stop.value.code == 2
    assert "--quick" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_told_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "esper", "train", "--help"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_another_pipe_that_breaks_is_told(monkeypatch, capsys):
    def run(command, console):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("esper.commands.listings.TasksCommand.run", run)
    assert main(["tasks"]) == 2
    assert "esper: [Errno 32] Broken pipe" in capsys.readouterr().err


def test_esper_ppo_is_a_command(tmp_path, capsys):
    assert main(["ppo", "--env", "esper/Locksmith-v0", "--total-steps", "64", "--num-steps", "8", "--num-envs", "4",
                 "--episodes", "2", "--quiet", "--run-dir", str(tmp_path / "run")]) == 0  # fmt: skip
    assert (tmp_path / "run" / "config.json").is_file()
    assert "over 2 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(28, "No space left on device", "runs/mine"), 2, "[Errno 28] No space left on device: 'runs/mine'"),
        (PermissionError(13, "Permission denied", "runs/mine"), 2, "[Errno 13] Permission denied: 'runs/mine'"),
        (MemoryError("cannot allocate\n8 GB"), 2, "memory has run out: cannot allocate 8 GB"),
        (ChildProcessError("worker process 5 was killed"), 1, "worker process 5 was killed"),
        (ValueError("two\nlines"), 2, "two lines"),
        (ValueError("no column '\x1b[2Jé'"), 2, "no column '\N{REPLACEMENT CHARACTER}[2Jé'"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_what_is_refused_is_one_line_and_an_exit_code(error, code, says, monkeypatch, capsys):
    def refuse(self, console):
        raise error

    monkeypatch.setattr("esper.commands.listings.TasksCommand.run", refuse)
    assert main(["tasks"]) == code
    assert capsys.readouterr().err == ("" if says is None else f"esper: {says}\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt(), True), (OSError(28, "full"), True), (ChildProcessError("killed"), True),
     (FileExistsError("there is a run"), False), (ValueError("wrong"), False)],
)  # fmt: skip
def test_a_command_that_is_stopped_says_how_to_go_on(error, said, capsys):
    with pytest.raises(type(error)), resumable(Console(), "esper train --resume runs/mine"):
        raise error
    assert ("go on with: esper train --resume runs/mine" in capsys.readouterr().out) == said


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_with_the_line_that_goes_on_and_its_exit_code(signum, code, monkeypatch, capsys):
    def run(self, console):
        with resumable(console, "esper train --resume runs/mine"):
            os.kill(os.getpid(), signum)
            time.sleep(10)

    monkeypatch.setattr("esper.commands.listings.TasksCommand.run", run)
    usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(signum, usual)  # one that runs in the background may ignore it
    try:
        assert main(["tasks"]) == code
        assert capsys.readouterr() == ("stopped; go on with: esper train --resume runs/mine\n", "")
        assert signal.getsignal(signum) is usual
    finally:
        signal.signal(signum, inherited)


def test_a_hang_up_that_is_ignored_stays_so(monkeypatch, capsys):
    monkeypatch.setattr("esper.commands.listings.TasksCommand.run", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["tasks"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_hides_no_signal():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    with pytest.raises(KeyboardInterrupt), resumable(Console(file=Gone()), "esper train --resume runs/mine"):
        raise KeyboardInterrupt


def test_a_run_that_another_process_writes_is_refused_by_name(tmp_path, capsys):
    hold = f"from esper.files import locked\nwith locked({str(tmp_path)!r}):\n  print(flush=True)\n  input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holder.stdout.readline()
    arguments = ["ppo", "--env", "esper/Locksmith-v0", "--updates", "1", "--run-dir", str(tmp_path), "--quiet"]
    for more in ([], ["--resume"]):
        assert main([*arguments, *more]) == 2
        assert f"'{tmp_path}' is being written by process {holder.pid} on" in capsys.readouterr().err
    holder.communicate("\n")
    assert not (tmp_path / "metrics.jsonl").exists()
