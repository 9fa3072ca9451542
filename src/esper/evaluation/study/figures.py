"""The figures of a study: score against parameters, against FLOPs, and the front that rent draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from esper.evaluation import names
from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import bootstrap
from esper.evaluation.study.competitors import anytime
from esper.evaluation.table import Table, objective_on_test
from esper.files import written_whole

# Okabe and Ito's colours, which stay apart in the common kinds of colour blindness.
_STYLE = {
    names.HOST_ALONE: ("#8A94A0", "s"),
    names.RANDOM_LEGAL: ("#CC79A7", "v"),
    names.FIXED: ("#E69F00", "^"),
    names.HEURISTIC: ("#009E73", "D"),
    names.AUDITION: ("#84A100", ">"),
    names.TAMIYO: ("#0B5FA5", "o"),
    names.SHUFFLED: ("#56B4E9", "X"),
    names.FOREIGN: ("#7B8CDE", "P"),
    names.EARLIEST: ("#0B5FA5", "<"),
    names.STATIC_EPOCHS: ("#D55E00", "P"),
    names.STATIC_FLOPS: ("#D55E00", "p"),
    names.ALL_FILLED: ("#5B3A8C", "h"),
    names.RANDOM_POPULATION: ("#BFC5CC", "."),
    names.BEST_OF_RANDOM: ("#1F2933", "*"),
    names.GROMO: ("#8C564B", "d"),
}

_HOLLOW = {names.SHUFFLED, names.FOREIGN, names.EARLIEST, names.STATIC_EPOCHS, names.STATIC_FLOPS}
"""What is derived from the growths of Tamiyo: drawn as outlines, since they lie over it."""

_OWN_STYLE = (("#B5179E", "H"), ("#7A5C00", "8"), ("#2B9348", "s"), ("#9D0208", "D"))
"""Of the arms of the user's own, in turn."""

_COMPETITOR_STYLE = {
    names.SUCCESSIVE_HALVING: ("#D55E00", "o"),
    names.ONE_EPOCH: ("#E69F00", "^"),
    names.RANDOM_SEARCH: ("#8A94A0", "s"),
    names.WIDER_HOST: ("#009E73", "D"),
    names.DEEPER_HOST: ("#CC79A7", "v"),
    names.SMALLER_STATIC: ("#56B4E9", "P"),
}

Panel = Callable[[Axes, Table, str], None]


def score_against_parameters(table: Table, path: Path) -> None:
    """Test score against parameters, one panel per task, with the Pareto front of all arms' means."""
    _figure(table, path, _draw_parameters, "parameters of the final network", "test score")


def score_against_flops(table: Table, path: Path) -> None:
    """Mean validation score against cumulative training FLOPs, one panel per task."""
    _figure(table, path, _draw_flops, "training FLOPs so far", "validation score")


def rent_front(table: Table, rents: Sequence[float], path: Path) -> None:
    """What one policy does under several rents: test score against parameters, one panel per task."""

    def draw(axes: Axes, table: Table, task: str) -> None:
        means = [_means(table.results[task, names.at_rent(names.TAMIYO, rent)]) for rent in rents]
        colour, marker = _STYLE[names.TAMIYO]
        axes.plot(*zip(*means, strict=True), color=colour, marker=marker, label=names.TAMIYO, linewidth=1.5)
        axes.margins(x=0.15, y=0.12)
        _at_least_two_points(axes)
        axes.set_xscale("log")
        axes.autoscale_view()
        _label_apart(axes, [(f"{rent:g}", point) for rent, point in zip(rents, means, strict=True)], colour)

    _figure(table, path, draw, "parameters of the final network (labels: rent)", "test score")


def anytime_curves(table: Table, budgets: Sequence[float], path: Path) -> None:
    """J on test data against compute for every competitor, one panel per task; Tamiyo's one growth is a line."""
    points = anytime(table, budgets)

    def draw(axes: Axes, table: Table, task: str) -> None:
        grown = bootstrap(table.scores(names.TAMIYO, objective_on_test, [task]))
        axes.axhspan(grown.low, grown.high, color=_STYLE[names.TAMIYO][0], alpha=0.12, linewidth=0)
        axes.axhline(grown.estimate, color=_STYLE[names.TAMIYO][0], label=f"{names.TAMIYO}, one growth", linewidth=2.2)
        for place, (competitor, (colour, marker)) in enumerate(_COMPETITOR_STYLE.items()):
            beside = 1.03 ** (place - len(_COMPETITOR_STYLE) / 2)  # so that their intervals do not hide each other
            mine = [point for point in points if (point.task, point.competitor) == (task, competitor)]
            means = [point.test_J.estimate for point in mine]
            below, above = ([abs(getattr(p.test_J, end) - p.test_J.estimate) for p in mine] for end in ("low", "high"))
            axes.errorbar(
                [point.budget * beside for point in mine],
                means,
                (below, above),
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.3,
                elinewidth=0.6,
                label=competitor,
            )

    _figure(table, path, draw, "compute, in growths", "J on test data", ticks=sorted(budgets))


def _means(results: Sequence[EpisodeResult]) -> tuple[float, float]:
    return float(np.mean([r.total_params for r in results])), float(np.mean([r.test_score for r in results]))


def _at_least_two_points(axes: Axes) -> None:
    """Let a vertical axis of scores span 0.02 or more, so that a difference of nothing looks like one."""
    low, high = axes.get_ylim()
    if high - low < 0.02:
        middle = (low + high) / 2
        axes.set_ylim(middle - 0.01, middle + 0.01)


def _label_apart(axes: Axes, labelled: Sequence[tuple[str, tuple[float, float]]], colour: str) -> None:
    """Write labels beside their points; points that lie close together share one."""
    to_share = axes.transScale + axes.transLimits
    groups: list[list[tuple[str, tuple[float, float]]]] = []
    for label, point in labelled:
        place = to_share.transform(point)
        near = lambda group: (abs(to_share.transform(group[0][1]) - place) < (0.12, 0.06)).all()  # noqa: B023, E731
        group = next(filter(near, groups), None)
        if group is None:
            groups.append([(label, point)])
        else:
            group.append((label, point))
    for group in groups:
        axes.annotate(
            ", ".join(label for label, _ in group),
            group[0][1],
            textcoords="offset points",
            xytext=(8, -14),
            ha="center",
            fontsize=8,
            color=colour,
        )


def _drawn(table: Table, task: str) -> dict[str, tuple[str, str]]:
    """Colour and marker of the arms that were run on a task; competitors have a figure of their own."""
    competitors = tuple(f"{name}, " for name in _COMPETITOR_STYLE)
    own = [arm for arm in table.arms if arm not in _STYLE and not arm.startswith(competitors)]
    styles = _STYLE | dict(zip(own, cycle(_OWN_STYLE), strict=False))
    return {arm: style for arm, style in styles.items() if (task, arm) in table.results}


def _draw_parameters(axes: Axes, table: Table, task: str) -> None:
    points = []
    for arm, (colour, marker) in _drawn(table, task).items():
        results = table.results[task, arm]
        if arm == names.RANDOM_POPULATION:
            xs, ys = [r.total_params for r in results], [r.test_score for r in results]
            axes.plot(xs, ys, marker, color=colour, label=f"{arm} (each)", markersize=5, zorder=1)
            continue
        x, y = _means(results)
        points.append((x, y))
        spread = [bootstrap({task: values}) for values in zip(*[(r.total_params, r.test_score) for r in results])]  # noqa: B905
        error = [[[s.estimate - s.low], [s.high - s.estimate]] for s in spread]
        axes.errorbar(
            x,
            y,
            error[1],
            error[0],
            marker,
            color=colour,
            label=arm,
            markersize=9 if arm in _HOLLOW else 7,
            markerfacecolor="none" if arm in _HOLLOW else colour,
            markeredgewidth=1.3 if arm in _HOLLOW else 0.5,
            elinewidth=0.7,
            zorder=3 if arm in _HOLLOW else 2,
        )
    front = [p for p in sorted(points) if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)]
    axes.plot(*zip(*front, strict=True), color="#1F2933", linewidth=0.8, linestyle=":", zorder=0, label="Pareto front")


def _draw_flops(axes: Axes, table: Table, task: str) -> None:
    for arm, (colour, _) in _drawn(table, task).items():
        results = table.results[task, arm]
        if arm in (names.RANDOM_POPULATION, names.STATIC_FLOPS):
            continue  # each run of these has a length of its own
        flops = np.mean([r.train_flops for r in results], axis=0)
        scores = np.mean([r.scores for r in results], axis=0)
        start = 0 if arm == names.BEST_OF_RANDOM else 1
        axes.plot(
            flops[start:],
            scores[start:],
            color=colour,
            label=arm,
            linewidth=2.2 if arm == names.TAMIYO else 1.2,
            linestyle="--" if arm in _HOLLOW else "-",
        )


def _plain_ticks(axes: Axes) -> None:
    """A few whole numbers on a logarithmic axis."""
    low, high = axes.get_xlim()
    wide = high > 5 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


_LEGEND_COLUMN, _LEGEND_ROW = 2.9, 0.19
"""Width and height of an entry of the legend, in inches: the longest name of an arm fits."""


def _legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """One legend for all panels below them, as many columns as the figure has room for."""
    found = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    columns = max(1, int(width // _LEGEND_COLUMN))
    figure.set_size_inches(width, height + _LEGEND_ROW * -(-len(found) // columns))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _figure(
    table: Table, path: Path, draw: Panel, x_label: str, y_label: str, *, ticks: Sequence[float] | None = None
) -> None:
    columns = min(3, len(table.tasks))
    rows = -(-len(table.tasks) // columns)
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(max(6.0, 4.2 * columns), 3.3 * rows + 0.3), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, task in zip(grid, table.tasks, strict=False):
            draw(axes, table, task)
            unseen = "" if task in table.trained_on else " (unseen in training)"
            axes.set_title(task + unseen, fontsize=11, fontweight="bold")
            axes.set_xlabel(x_label, fontsize=9)
            axes.set_ylabel(y_label, fontsize=9)
            axes.grid(color="#E4E7EB", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xscale("log")
            axes.ticklabel_format(axis="y", useOffset=False)
            if x_label.startswith("parameters"):
                _plain_ticks(axes)
            if ticks is not None:
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.xaxis.set_minor_locator(NullLocator())
        for axes in grid[len(table.tasks) :]:
            axes.set_visible(False)
        _legend(figure, grid[: len(table.tasks)].tolist())
        with written_whole(path) as unfinished:
            figure.savefig(unfinished, dpi=130)
