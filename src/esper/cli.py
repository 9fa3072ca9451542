"""The command line: ``esper train``, ``esper tasks``, ``esper blueprints``, ….

Each command is a typed config dataclass in a module of its own, which is imported when it is called; its options,
defaults and help are derived from it (tyro). What the user got wrong, and what the machine refused, ends in one clear
line and exit code 2.
"""

from __future__ import annotations

import difflib
import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import tyro
from rich.console import Console

import esper
from esper.allocator import keep_freed_memory
from esper.extensions import import_modules, look_here

COMMANDS = {
    "train": (
        "esper.commands.train:TrainCommand",
        "Train Tamiyo with PPO on growing networks, and compare it with the other controllers.",
    ),
    "compare": (
        "esper.commands.compare:CompareCommand",
        "Compare growth controllers and fixed networks on equal terms; a report in HTML, figures, and all results.",
    ),
    "grow": (
        "esper.commands.grow:GrowCommand",
        "Grow one network on a task or on your own data: figure, summary, test accuracy, and the model as a file.",
    ),
    "report": (
        "esper.commands.report:ReportCommand",
        "Make one self-contained page of a growth, a training run or a comparison; no scripts, nothing from elsewhere.",
    ),
    "average": (
        "esper.commands.average:AverageCommand",
        "Average the weights of trained policies of which each was trained on from another.",
    ),
    "ppo": (
        "esper.commands.ppo:PPOCommand",
        "Train a recurrent policy with PPO on any Gymnasium environment.",
    ),
    "tasks": ("esper.commands.listings:TasksCommand", "List the tasks: data, host, slots, horizon."),
    "blueprints": (
        "esper.commands.listings:BlueprintsCommand",
        "List the blueprints: what each is, which kinds of slot it fits, what it costs.",
    ),
}
"""Name → where the command lives, and what it does: the first line of its docstring, known without importing it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 a worker died, 2 wrong options or a refusal, 130 after Ctrl-C.

    SIGTERM and SIGHUP end a command as Ctrl-C does, workers included, with the codes 143 and 129.
    """
    modules, others = _imports(sys.argv[1:] if arguments is None else list(arguments))
    name, *options = others or [""]
    if name == "--version":
        print(f"esper {esper.__version__}")
        return 0
    if name in ("", "-h", "--help"):
        print(_overview())
        return 0 if name else 2
    if name not in COMMANDS:
        print(f"esper: {_unknown(name)}", file=sys.stderr)
        return 2
    module, command_name = COMMANDS[name][0].split(":")
    try:
        with _stopping_when_told():
            look_here()
            import_modules(modules)
            command = tyro.cli(
                getattr(importlib.import_module(module), command_name), args=options, prog=f"esper {name}"
            )
            _refuse_ignored(command, options)
            keep_freed_memory()
            command.run(Console())
    except ChildProcessError as error:
        print(f"esper: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be said
            return 128 + signal.SIGPIPE
        print(f"esper: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stop:
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 130
    return 0


def _refuse_ignored(command: Any, options: Sequence[str]) -> None:
    """Where a run is gone on with, an option that is read from that run would else be ignored."""
    run_dir = getattr(command, "resume", None)
    used = getattr(command, "RESUMED_WITH", None)
    if not run_dir or used is None:
        return
    given = [option.partition("=")[0].replace("_", "-") for option in options if option.startswith("--")]
    ignored = [name for name in given if name.removeprefix("--").removeprefix("no-") not in {"resume", *used}]
    if ignored:
        expected = ", ".join(f"--{name}" for name in used)
        raise ValueError(
            f"{', '.join(ignored)}: with --resume this is read from {run_dir}, as it was begun, and cannot change; "
            f"expected no other options than {expected}"
        )


def _imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Modules named by ``--import``, wherever it stands, and the other arguments."""
    modules, others, left = [], [], iter(arguments)
    for argument in left:
        option, equals, value = argument.partition("=")
        if option == "--import":
            modules.append(value if equals else next(left, ""))
        else:
            others.append(argument)
    return modules, others


class Stopped(KeyboardInterrupt):
    """The system, or whoever closed the terminal, wants this process to end: it ends as after Ctrl-C."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)


@contextmanager
def _stopping_when_told() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise :class:`Stopped`, but for one that is ignored, as under ``nohup``."""
    if threading.current_thread() is not threading.main_thread():  # no other one is told of signals
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
    heard = [s for s, handler in before.items() if handler is not signal.SIG_IGN]
    for signum in heard:
        signal.signal(signum, _stop)
    try:
        yield
    finally:
        for signum in heard:
            signal.signal(signum, before[signum])


def _reader_has_gone() -> bool:
    """Whether nobody reads the output any more, as when `head` has seen enough: no word is of use then."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
    except OSError:  # no file
        return False
    return any(event & select.POLLERR for _, event in output.poll(0))


def _in_one_line(error: Exception) -> str:
    """What an error says; what it quotes from a file must not steer the terminal."""
    said = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(error).split()))
    return f"memory has run out: {said}" if isinstance(error, MemoryError) else said


def _overview() -> str:
    commands = "\n".join(f"  {name:10}  {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: esper COMMAND [OPTIONS]\n\n"
        "Grow PyTorch networks while they train, steered by a policy that has learned how.\n\n"
        f"{commands}\n\n"
        "`esper COMMAND --help` shows the options of a command, `esper --version` the version. With any command,\n"
        "`--import MODULE` first imports a module of your own, which registers tasks, blueprints, objectives\n"
        "or policies."
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`esper --help` says what each of them does"
    return f"expected one of the commands {', '.join(COMMANDS)}, got '{name}'; {hint}"
