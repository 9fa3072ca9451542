"""The page of a training run of a policy: how it went, update by update, and what it was compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator

from esper.evaluation.statistics import Interval
from esper.evaluation.table import MEANS
from esper.figure import Drawing
from esper.files import read_json
from esper.page import facts, fold, note, page, picture, table

_FIRST = ("return", "length", "explained_variance")
"""Metrics that are shown before all others, with those of the environment's episodes."""

Rows = Sequence[Mapping[str, float]]


def training_page(directory: Path) -> str:
    """The page of the run in ``directory``.

    Raises:
        ValueError: When a file is damaged, or no update has been logged.
    """
    rows = read_metrics(directory / "metrics.jsonl")
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "update"]
    known = [name for name in names if any(math.isfinite(row.get(name, math.nan)) for row in rows)]
    first = [name for name in known if name in _FIRST or name.startswith("episode/")]
    rest = [name for name in known if name not in first]
    shown = {"Directory": str(directory), "Updates": f"{rows[-1]['update']:,.0f}"}
    if "env_steps" in known:
        shown["Steps"] = f"{_last(rows, 'env_steps'):,.0f}"
    shown |= {name: f"{_last(rows, name):.4g} (at the end)" for name in first}
    return page(
        f"Training run {directory.resolve().name}",
        facts(shown),
        "<h2>How it went</h2>",
        _charts(rows, first),
        *_comparison(directory),
        fold("All other metrics", _charts(rows, rest)),
        fold("Options", f"<pre>{escape(_options(directory))}</pre>"),
    )


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``, one an update; ``null`` is NaN. A last row cut off in writing is left out.

    Raises:
        ValueError: When a row is damaged, or there is none.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = {name: math.nan if value is None else float(value) for name, value in json.loads(line).items()}
            row["update"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if number == len(lines) and rows:
                break
            raise ValueError(f"'{file}', line {number}: expected the metrics of an update as JSON") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"'{file}': no update has been logged yet; wait for the first, or train again")
    return rows


def _charts(rows: Rows, names: Sequence[str]) -> str:
    figures = (f"<figure>{picture(_chart(rows, name), f'{name} by update')}</figure>" for name in names)
    return f"<div class=charts>{''.join(figures)}</div>"


def _chart(rows: Rows, name: str) -> bytes:
    """One metric over updates, as an SVG."""
    with matplotlib.style.context("default"):
        figure = Drawing(figsize=(4.2, 2.4), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        pairs = [(row["update"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        axes.plot(*zip(*pairs, strict=True), color="#0B5FA5", linewidth=1.6, marker="." if len(pairs) < 30 else "")
        axes.set_title(f"{name}   {pairs[-1][1]:.4g}", fontsize=10.5, loc="left", color="#1F2933")
        axes.set_xlabel("update", fontsize=9, color="#6B7785")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(colors="#6B7785", labelsize=8.5, length=0)
        axes.grid(color="#E4E7EB", linewidth=0.8)
        axes.spines[:].set_visible(False)
    return figure.rendered("svg")


def _last(rows: Rows, name: str) -> float:
    """The latest value of a metric that is known."""
    return next(row[name] for row in reversed(rows) if math.isfinite(row.get(name, math.nan)))


def _comparison(directory: Path) -> Iterator[str]:
    """The controllers that the policy was compared with, where `esper train` has done so."""
    file = directory / "comparison.json"
    if not file.is_file():
        return
    found = read_json(file)
    try:
        lines = [_row(row) for row in found["rows"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"'{file}': expected the rows of a comparison, as `esper train` writes them") from error
    head = ("task", "controller", "episodes", *(column.heading for column in MEANS.values()))
    yield "<h2>Beside the other controllers</h2>"
    yield note("Episodes that nothing was trained or chosen on; means with 95 % intervals.")
    yield table(head, lines, head[2:])


def _row(row: Mapping[str, Any]) -> list[str]:
    shown = [column.show(Interval(**row[name])) for name, column in MEANS.items()]
    return [row["task"], row["arm"], str(row["episodes"]), *shown]


def _options(directory: Path) -> str:
    file = directory / "config.json"
    return json.dumps(read_json(file), indent=2) if file.is_file() else "not known"
