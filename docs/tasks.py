"""Print the page of the tasks, from their registry and what was measured of them.

python docs/tasks.py > docs/tasks.md
"""

from esper.tasks import TASKS, Task

SOURCES = {
    "digits": "scikit-learn (UCI, CC BY 4.0)",
    "digits_shuffled": "scikit-learn (UCI, CC BY 4.0)",
    "digits_rows": "scikit-learn (UCI, CC BY 4.0)",
    "mnist1d": "the package mnist1d (Apache 2.0)",
    "mnist1d_shuffled": "the package mnist1d (Apache 2.0)",
    "breast_cancer": "scikit-learn (UCI, CC BY 4.0)",
    "wine": "scikit-learn (UCI, CC BY 4.0)",
    "spirals": "made on the spot",
    "charlm": "ships (CPython, PSF)",
    "codelm": "ships (CPython, PSF)",
    "glyphs": "ships (drawn from DejaVu, STIX and Computer Modern)",
    "glyph_transformer": "as `glyphs`",
    "glyph_stream": "as `glyphs`",
    "letter": "ships (UCI, CC BY 4.0)",
    "satellite": "ships (UCI, CC BY 4.0)",
    "pen_digits": "ships (UCI, CC BY 4.0)",
    "splice": "ships (UCI, CC BY 4.0)",
    "library_lm": "ships (CPython, PSF)",
}
"""Where the data are from, and their licence."""

HOST_ALONE = {
    "glyphs": ("89.8, 85.7, 87.3", "90.2, 90.9, 92.1", 31),
    "glyph_transformer": ("60.6, 58.1, 58.7", "39.2, 41.9, 44.4", 32),
    "glyph_stream": ("68.8, 65.4, 62.7", "", 28),
    "letter": ("94.8, 95.3, 95.0", "96.1, 95.9, 96.0", 5),
    "satellite": ("90.0, 91.8, 92.1", "91.6, 92.2, 92.2", 3),
    "pen_digits": ("99.3, 98.6, 99.2", "98.0, 98.4, 98.3", 11),
    "splice": ("97.8, 96.7, 97.8", "98.0, 97.3, 97.3", 17),
    "library_lm": ("52.8, 52.0, 52.7", "50.9, 51.5 (two others)", 43),
}
"""Validation score in % at the end of a run of the host alone, by seed, at a constant learning rate and along a cosine;
processor seconds of a run."""

PAGE = """# Tasks

<!-- Made by docs/tasks.py from the registry of tasks; do not edit by hand. -->

A task is data in three splits, a host with slots, and the length of a run. None needs a download: the data come with a
package that Esper depends on, are made on the spot, or ship with Esper, pinned by checksum
(`src/esper/tasks/data/README.md` has sources and licences).

{tasks}

**Held out** are {held_out}: no policy that ships is trained or chosen on them, so that they can be the
judges at the end. `task.held_out` says so, and a test holds the policy that ships to it.

## The larger tasks

Their hosts have 20,000 to 200,000 parameters and are written as they are in practice. Measured on 2026-11-28: the host
alone, trained by Adam at the task's learning rate for a whole run, validation score in % of the seeds 0, 1 and 2 at a
constant learning rate and along a cosine, and the processor time of such a run in seconds (one thread, data loaded).
Growing adds what its seeds and its measurements cost. The validation scores of a run are no test scores: compare a
published score with them in size only.

{larger}

- All but `pen_digits` can be trained in one graph (`engine="stacked"`); that host has recurrent layers, which have no
  rule there, and is trained one after the other.
- The learning rate falls along a cosine on images and tables, though `pen_digits` would do better without. The
  transformers and the stream keep it: they are far from done after 800 steps, and a rate that falls loses 1 to 18
  points there.
- `glyph_stream` shows a quarter of its training data after the other, while validation is on all of them. A task does
  so that sets `phases`.
"""


def page() -> str:
    """The page, as Markdown."""
    held_out = [f"`{name}`" for name, task in TASKS.items() if task.held_out]
    tasks = {name: task() for name, task in TASKS.items()}
    return PAGE.format(
        tasks=table(
            ["task", "what the data are", "training, validation, test", "chance", "host", "slots", "source"],
            [[f"`{name}`", *facts(task), SOURCES[name]] for name, task in tasks.items()],
        ),
        held_out=" and ".join([", ".join(held_out[:-1]), held_out[-1]]),
        larger=table(
            ["task", "a run", "constant rate", "cosine", "its own", "s a run", "published"],
            [
                [
                    f"`{name}`",
                    run(tasks[name]),
                    constant,
                    cosine or "—",
                    tasks[name].schedule,
                    str(seconds),
                    tasks[name].reference or "—",
                ]
                for name, (constant, cosine, seconds) in HOST_ALONE.items()
            ],
        ),
    )


def facts(task: Task) -> list[str]:
    """Description, sizes, chance, host and slots."""
    parameters = sum(p.numel() for p in task.build_host().parameters())
    sizes = ", ".join(f"{size:,}" for size in task.splits().sizes)
    return [task.description, sizes, f"{task.chance_score:.1%}", f"{parameters:,}", str(len(task.slots))]


def run(task: Task) -> str:
    """The length of a run."""
    return f"{task.horizon} decisions × {task.steps_per_decision} steps × batch {task.batch_size}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
