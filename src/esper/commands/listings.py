"""``esper tasks`` and ``esper blueprints``: what there is, read from the tables."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from esper.network.blueprints import BLUEPRINTS, SlotSpec, count_parameters
from esper.tasks import TASKS, Task


@dataclass(frozen=True)
class TasksCommand:
    """List the tasks: data, host, slots, horizon."""

    def run(self, console: Console) -> None:
        """Print a few lines for each task."""
        console.print("Tasks (no download)")
        for name, task_class in TASKS.items():
            console.print(f"\n[bold]{name}[/bold]: {task_class.description}", highlight=False)
            lines = Table.grid(padding=(0, 2), pad_edge=False)
            for label, text in _facts(task_class()).items():
                lines.add_row(f"  {label}", text)
            console.print(lines)


def _facts(task: Task) -> dict[str, str]:
    train, validation, test = task.splits().sizes
    host_params = sum(p.numel() for p in task.build_host().parameters())
    facts = {
        "samples": f"{train:,} training, {validation:,} validation, {test:,} test",
        "host": f"{host_params:,} parameters; slots {', '.join(task.slots)}",
        "episode": f"{task.horizon} decisions × {task.steps_per_decision} steps × batch {task.batch_size}",
        "published": task.reference,
        "held out": "no policy that ships is trained on it" if task.held_out else "",
    }
    return {label: text for label, text in facts.items() if text}


_EXAMPLES = {
    "vector": SlotSpec("vector", 16),
    "sequence": SlotSpec("sequence", 16, (40,)),
    "image": SlotSpec("image", 16, (8, 8)),
}


@dataclass(frozen=True)
class BlueprintsCommand:
    """List the blueprints: what each is, which kinds of slot it fits, what it costs."""

    def run(self, console: Console) -> None:
        """Print one row per blueprint."""
        table = Table(title="Blueprints (parameters in a slot of 16 channels, style add)")
        table.add_column("blueprint", no_wrap=True)
        table.add_column("what it is")
        for kind in _EXAMPLES:
            table.add_column(kind, justify="right", no_wrap=True)
        for name, blueprint in BLUEPRINTS.items():
            costs = [
                f"{count_parameters(name, spec, 'add'):,}" if blueprint.fits(spec) else "—"
                for spec in _EXAMPLES.values()
            ]
            table.add_row(name, (blueprint.__doc__ or "").strip().splitlines()[0], *costs)
        console.print(table)
