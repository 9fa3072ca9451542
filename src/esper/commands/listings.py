"""``esper tasks`` and ``esper blueprints``: what there is, read from the tables."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from esper.growth.blueprints import BLUEPRINTS, SlotSpec, count_parameters
from esper.tasks import TASKS


@dataclass(frozen=True)
class TasksCommand:
    """List the tasks: data, host, slots, horizon."""

    def run(self, console: Console) -> None:
        """Print one row a task."""
        table = Table(title="Tasks (embedded, no download)")
        for column in ("task", "what it is", "train / validation / test", "host", "slots", "horizon", "reference"):
            table.add_column(column, overflow="fold", no_wrap=column == "task")
        for name, task_class in TASKS.items():
            task = task_class()
            splits = task.splits()
            sizes = " / ".join(f"{len(x):,}" for x in (splits.train_x, splits.val_x, splits.test_x))
            host = f"{sum(p.numel() for p in task.build_host().parameters()):,} parameters"
            horizon = f"{task.horizon} decisions × {task.steps_per_decision} steps × batch {task.batch_size}"
            table.add_row(name, task.description, sizes, host, ", ".join(task.slots), horizon, task.reference)
        console.print(table)


_EXAMPLES = {
    "vector": SlotSpec("vector", 16),
    "sequence": SlotSpec("sequence", 16, (40,)),
    "image": SlotSpec("image", 16, (8, 8)),
}


@dataclass(frozen=True)
class BlueprintsCommand:
    """List the blueprints: what each is, which kinds of slot it fits, what it costs."""

    def run(self, console: Console) -> None:
        """Print one row a blueprint."""
        table = Table(title="Blueprints (parameters in a slot of 16 channels, style add)")
        for column in ("blueprint", "what it is", *(f"{kind} slot" for kind in _EXAMPLES)):
            table.add_column(
                column, justify="right" if column.endswith("slot") else "left", no_wrap=column == "blueprint"
            )
        for name, blueprint in BLUEPRINTS.items():
            costs = [
                f"{count_parameters(name, spec, 'add'):,}" if blueprint.fits(spec) else "—"
                for spec in _EXAMPLES.values()
            ]
            table.add_row(name, (blueprint.__doc__ or "").strip().splitlines()[0], *costs)
        console.print(table)
