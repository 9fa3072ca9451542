"""The command line: ``esper train``, ``esper tasks``, ``esper blueprints``, ….

Each command is a typed config dataclass; its options, defaults and help are derived from it (tyro). What the user got
wrong ends in one clear line and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

import esper
from esper.commands.average import AverageCommand
from esper.commands.compare import CompareCommand
from esper.commands.grow import GrowCommand
from esper.commands.listings import BlueprintsCommand, TasksCommand
from esper.commands.ppo import PPOCommand
from esper.commands.train import TrainCommand
from esper.env.engine.allocator import keep_freed_memory

Command = (
    Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
    | Annotated[GrowCommand, tyro.conf.subcommand("grow")]
    | Annotated[AverageCommand, tyro.conf.subcommand("average")]
    | Annotated[PPOCommand, tyro.conf.subcommand("ppo")]
    | Annotated[TasksCommand, tyro.conf.subcommand("tasks")]
    | Annotated[BlueprintsCommand, tyro.conf.subcommand("blueprints")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 2 for what the user got wrong, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"esper {esper.__version__}")
        return 0
    command = tyro.cli(
        Command,
        args=arguments,
        prog="esper",
        description="Grow PyTorch networks while they train, steered by a policy that has learned how.",
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    keep_freed_memory()
    try:
        command.run(Console())
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"esper: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
