"""Tasks: data, a host with slots, and the length of a run. None needs a download; bring your own data as files."""

from __future__ import annotations

from pathlib import Path

from esper.tasks.automatic import auto_host
from esper.tasks.glyphs import Glyphs, GlyphStream, GlyphTransformer
from esper.tasks.images import Digits, DigitsRows, ShuffledDigits
from esper.tasks.loading import DataOptions, load_data
from esper.tasks.own_host import HOSTS, Rehosted, register_host
from esper.tasks.schedules import SCHEDULES
from esper.tasks.signals import MNIST1D, ShuffledMNIST1D
from esper.tasks.synthetic import Spirals
from esper.tasks.tabular import BreastCancer, Letter, PenDigits, Satellite, Splice, Wine
from esper.tasks.task import TASKS, Splits, Task, register_task, unknown_task
from esper.tasks.text import CharLM, CodeLM, LibraryLM

__all__ = [
    "HOSTS",
    "MNIST1D",
    "SCHEDULES",
    "TASKS",
    "BreastCancer",
    "CharLM",
    "CodeLM",
    "DataOptions",
    "Digits",
    "DigitsRows",
    "GlyphStream",
    "GlyphTransformer",
    "Glyphs",
    "Letter",
    "LibraryLM",
    "PenDigits",
    "Rehosted",
    "Satellite",
    "ShuffledDigits",
    "ShuffledMNIST1D",
    "Spirals",
    "Splice",
    "Splits",
    "Task",
    "Wine",
    "auto_host",
    "get_task",
    "load_data",
    "register_host",
    "register_task",
]


def get_task(name: str) -> Task:
    """The task of this name, or one made from the data at this path (see :func:`load_data`).

    Raises:
        ValueError: For a name that is neither, with the names that come nearest; for data that cannot be used.
        FileNotFoundError: For a path to nothing.
    """
    if name in TASKS:
        return TASKS[name]()
    looks_like_a_path = name and (Path(name).exists() or Path(name).suffix or "/" in name)
    if looks_like_a_path:
        return auto_host(load_data(name), name=Path(name).resolve().stem)
    raise unknown_task(name)
