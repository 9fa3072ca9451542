"""One growth as a picture: the score, what lived in every slot and when, and what it cost."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerPatch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from esper.files import written_whole
from esper.lifecycle import Stage
from esper.record import GrowthRecord, SlotState, told

# Colours that stay apart in the three common kinds of colour blindness and in grey.
_INK = "#1F2933"
_MUTED = "#6B7785"
_GRID = "#E4E7EB"
_SCORE = "#0B5FA5"
_HOST = "#8A94A0"
_FILL = {
    Stage.TRAINING: "#F7CE76",
    Stage.BLENDING: "#7FB8E6",
    Stage.HOLDING: "#4A90CF",
    Stage.FOSSILIZED: "#45A58B",
}
_TINT = {
    Stage.TRAINING: "#FCEBC4",
    Stage.BLENDING: "#E3F0FA",
    Stage.HOLDING: "#D5E6F5",
    Stage.FOSSILIZED: "#D6EEE7",
}
_EMBARGO = "#C5CBD3"
_KEPT_MARK = ("D", "#1F7A63")
_PRUNED_MARK = ("X", "#C2410C")

# Inches.
_WIDTH, _RIGHT = 10.0, 1.45
_TITLE, _SCORES, _GAP, _LANE, _PARAMETERS, _LEGEND = 0.95, 2.5, 0.16, 0.42, 0.62, 0.9
_DPI = 200

_LANE_BOTTOM, _LANE_TOP = 0.1, 0.9
_NAME_SIZES = (9.0, 8.0, 7.0, 6.0)
_LONGEST_SLOT_NAME = 24


class Drawing(Figure):
    """A figure of matplotlib that a notebook shows by itself, whether pyplot is imported or not."""

    def _repr_png_(self) -> bytes:
        return self.rendered("png")

    def rendered(self, form: str) -> bytes:
        """The picture as a file's content, ``"png"`` or ``"svg"``; the same at every call.

        Matplotlib's settings are left as they were, and those of the user have no influence.
        """
        content = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {}
        with matplotlib.style.context(["default", {"svg.hashsalt": "esper"}]):
            self.savefig(content, format=form, dpi=_DPI, **options)
        return content.getvalue()


def growth_figure(record: GrowthRecord, path: str | os.PathLike[str]) -> None:
    """Draw one growth and save it as a PNG, or as an SVG where ``path`` ends so.

    On top the validation score over decisions, with the host alone as a second line; below it a lane for each slot,
    with the seeds that lived there: their blueprint, their stage as a colour, their alpha as the height of the fill,
    and where one was pruned or kept for good; at the bottom the parameters added.

    The file is written whole or not at all. Matplotlib's settings are left as they were, and those of the user have no
    influence.
    """
    form = "svg" if Path(path).suffix == ".svg" else "png"
    with written_whole(path) as unfinished:
        unfinished.write_bytes(draw_growth(record).rendered(form))


def draw_growth(record: GrowthRecord) -> Drawing:
    """The picture of one growth, as :func:`growth_figure` saves it."""
    with matplotlib.style.context("default"):
        return _draw(record)


def _draw(record: GrowthRecord) -> Drawing:
    lanes = len(record.slots) * _LANE
    left = _left_margin(record)
    height = _TITLE + _SCORES + _GAP + lanes + _GAP + _PARAMETERS + _LEGEND
    figure = Drawing(figsize=(_WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)

    def panel(top: float, tall: float) -> Axes:
        box = (left / _WIDTH, 1 - (top + tall) / height, 1 - (left + _RIGHT) / _WIDTH, tall / height)
        axes = figure.add_axes(box)
        axes.set_xlim(0, len(record.scores) - 1)
        return axes

    top_of_lanes = _TITLE + _SCORES + _GAP
    score_axes = panel(_TITLE, _SCORES)
    lane_axes = panel(top_of_lanes, lanes)
    parameter_axes = panel(top_of_lanes + lanes + _GAP, _PARAMETERS)
    _draw_title(figure, record, left)
    _draw_scores(score_axes, record)
    _draw_lanes(lane_axes, record)
    _draw_parameters(parameter_axes, record)
    _draw_legend(figure, left)
    return figure


def _left_margin(record: GrowthRecord) -> float:
    """Inches for the names of the slots."""
    longest = max(len(_short(name)) for name in record.slots)
    return max(1.15, 0.3 + 0.084 * longest)


def _short(name: str) -> str:
    """A slot's name with the beginning cut off where it is too long; the end of a module's path tells more."""
    return name if len(name) <= _LONGEST_SLOT_NAME else "…" + name[1 - _LONGEST_SLOT_NAME :]


# ---------------------------------------------------------------------- title and legend


def _draw_title(figure: Figure, record: GrowthRecord, left: float) -> None:
    height = figure.get_figheight()
    title = record.title or f"{record.policy} grows a network on {record.task}"
    x = left / _WIDTH
    figure.text(x, 1 - 0.36 / height, title, fontsize=15, fontweight="bold", color=_INK, va="center")
    first, last = record.host_params, record.host_params + record.params_left
    sizes = f"{first:,} → {last:,} parameters" if last != first else f"{first:,} parameters"
    scores = " → ".join(told(score, record.measure) for score in (record.scores[0], record.scores[-1]))
    words = f"validation score {scores}   ·   {sizes}"
    figure.text(x, 1 - 0.66 / height, words, fontsize=10, color=_MUTED, va="center")


def _draw_legend(figure: Figure, left: float) -> None:
    stages = [
        Patch(facecolor=_FILL[stage], edgecolor="none", label=stage.name.lower())
        for stage in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
    ]
    embargoed = Patch(facecolor="white", edgecolor=_EMBARGO, hatch="////", linewidth=0.8, label="embargoed")
    events = [
        _marker(*_KEPT_MARK, "kept for good"),
        _marker(*_PRUNED_MARK, "pruned"),
    ]
    alpha = Polygon([(0, 0), (1, 0), (1, 1)], facecolor=_MUTED, edgecolor="none", label="height: alpha, 0 to 1")
    figure.legend(
        handles=[*stages, embargoed, *events, alpha],
        handler_map={Polygon: HandlerPatch(patch_func=_stairs)},
        loc="lower left",
        bbox_to_anchor=(min(left, 1.4) / _WIDTH, 0.14 / figure.get_figheight()),
        borderaxespad=0,
        ncols=8,
        frameon=False,
        fontsize=8.5,
        labelcolor=_MUTED,
        handlelength=1.3,
        handletextpad=0.5,
        columnspacing=1.3,
        borderpad=0,
    )


def _marker(shape: str, colour: str, label: str) -> Line2D:
    return Line2D(
        [], [], marker=shape, color="none", markerfacecolor=colour, markeredgecolor="white", markersize=8, label=label
    )


def _stairs(
    legend: Any, orig_handle: Any, xdescent: float, ydescent: float, width: float, height: float, fontsize: float
) -> Polygon:
    x, y = np.array([0, 0, 1, 1, 2, 2, 3, 3]) / 3 * width, np.array([0, 1, 1, 2, 2, 3, 3, 0]) / 3 * height
    return Polygon(np.stack([x, y], axis=1), closed=True)


# ---------------------------------------------------------------------- scores and parameters


def _draw_scores(axes: Axes, record: GrowthRecord) -> None:
    axes.margins(y=0.06)
    decisions = np.arange(len(record.scores))
    scores = np.asarray(record.scores, dtype=float)
    ends = [(scores, _SCORE, record.policy)]
    if record.host_alone_scores:
        alone = np.asarray(record.host_alone_scores, dtype=float)
        axes.fill_between(decisions, alone, scores, where=scores >= alone, color=_SCORE, alpha=0.08, linewidth=0)
        axes.plot(decisions, alone, color=_HOST, linewidth=1.8, linestyle=(0, (5, 2)), zorder=2)
        ends.append((alone, _HOST, "host alone"))
    axes.plot(decisions, scores, color=_SCORE, linewidth=2.4, zorder=3, solid_capstyle="round")
    _widen(axes, least=0.1)
    axes.plot(decisions[-1], scores[-1], "o", color=_SCORE, markersize=5, clip_on=False, zorder=4)
    _label_ends(axes, ends, record.measure)
    axes.set_ylabel("validation score", fontsize=9.5, color=_MUTED, labelpad=8)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ratio = record.measure == "R²"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}" if ratio else f"{100 * value:.0f} %"))
    _tidy(axes, grid=True)
    axes.tick_params(axis="x", labelbottom=False, length=0)


def _widen(axes: Axes, least: float) -> None:
    """Let scores span at least ``least``, so that noise does not look like progress, but no more than 0 to 100 %.

    What lies below 0 is shown where nothing lies above.
    """
    low, high = axes.get_ylim()
    more = max(0.0, least - (high - low)) / 2
    axes.set_ylim(max(low - more, -0.03 if high > 0 else low), min(high + more, 1.03))


def _label_ends(axes: Axes, ends: Sequence[tuple[np.ndarray, str, str]], measure: str) -> None:
    """Name each line at its right end; names of lines that end close together are pushed apart."""
    low, high = axes.get_ylim()
    apart = 0.15 * (high - low)
    places = [float(values[-1]) for values, _, _ in ends]
    if len(places) == 2 and abs(places[0] - places[1]) < apart:
        middle, sign = sum(places) / 2, 1 if places[0] >= places[1] else -1
        places = [middle + sign * apart / 2, middle - sign * apart / 2]
    for place, (values, colour, name) in zip(places, ends, strict=True):
        axes.annotate(
            f"{name}\n{told(values[-1], measure)}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(9, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9.5,
            fontweight="bold",
            va="center",
            linespacing=1.15,
            annotation_clip=False,
        )


def _draw_parameters(axes: Axes, record: GrowthRecord) -> None:
    decisions = np.arange(len(record.added_params))
    added = np.asarray(record.added_params, dtype=float)
    axes.fill_between(decisions, added, step="pre", color=_MUTED, alpha=0.15, linewidth=0)
    axes.step(decisions, added, where="pre", color=_MUTED, linewidth=1.4)
    highest = max(float(added.max()), 1.0)
    axes.set_ylim(0, highest * 1.15)
    axes.set_yticks([0, highest] if added.max() > 0 else [0])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.annotate(
        f"+{record.params_left:,}\nparameters",
        (1, 0.5),
        xycoords="axes fraction",
        xytext=(9, 0),
        textcoords="offset points",
        color=_MUTED,
        fontsize=9,
        va="center",
        annotation_clip=False,
    )
    axes.set_ylabel("added", fontsize=9.5, color=_MUTED, labelpad=8)
    axes.set_xlabel("step" if record.first else "decision", fontsize=9.5, color=_MUTED, labelpad=4)
    first, last = record.first, record.first + len(decisions) - 1
    shown = [round(t) for t in MaxNLocator(12, integer=True).tick_values(first, last) if first <= t <= last]
    axes.set_xticks([decision - first for decision in shown], [str(decision) for decision in shown])
    _tidy(axes, grid=False)


def _tidy(axes: Axes, *, grid: bool) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=8.5, length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y", color=_GRID, linewidth=0.8)


# ---------------------------------------------------------------------- lanes


_Room = tuple[float, float, Literal["left", "right"]]
"""Where a name may stand: from, to, and the side at which it is put."""


class _Life(NamedTuple):
    """One seed in one slot: it was there after decisions ``first`` to ``last``."""

    first: int
    last: int
    blueprint: str

    @property
    def start(self) -> int:
        """When its first interval began; the state after decision t held from t − 1 to t."""
        return max(self.first - 1, 0)


def _draw_lanes(axes: Axes, record: GrowthRecord) -> None:
    count = len(record.slots)
    horizon = len(record.scores) - 1
    axes.set_ylim(count, 0)
    for row, (name, states) in enumerate(record.slots.items()):
        axes.add_patch(
            Rectangle((0, row + _LANE_BOTTOM), horizon, _LANE_TOP - _LANE_BOTTOM, facecolor="#F6F7F9", linewidth=0)
        )
        lives = list(_lives(states))
        for stage, first, last in _runs(states):
            _draw_run(axes, row, stage, first, last, [state.alpha for state in states])
        free = 0.0
        for life, following in zip_longest(lives, lives[1:]):
            end = record.ends.get(name) if following is None else None
            marks = _draw_events(axes, row, life, states, end)
            after = horizon if following is None else following.start
            free = max(life.last, _draw_name(axes, row, life, marks, free, after))
    axes.set_yticks([row + 0.5 for row in range(count)], [_short(name) for name in record.slots])
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=_INK, pad=6)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _lives(states: Sequence[SlotState]) -> Iterator[_Life]:
    """The seeds of one slot in turn. A seed ends where the slot is empty or another seed begins its training."""
    first: int | None = None
    for index, state in enumerate(states):
        before = states[index - 1] if index else None
        alive = Stage[state.stage] in _FILL
        begins = alive and (
            first is None
            or before is None
            or before.blueprint != state.blueprint
            or (state.stage == Stage.TRAINING.name != before.stage)
        )
        if first is not None and (begins or not alive):
            yield _Life(first, index - 1, states[index - 1].blueprint or "")
            first = None
        if begins:
            first = index
    if first is not None:
        yield _Life(first, len(states) - 1, states[-1].blueprint or "")


def _runs(states: Sequence[SlotState]) -> Iterator[tuple[Stage, int, int]]:
    """(stage, first, last) for every unbroken stretch of one stage, after the first decision."""
    rest = list(enumerate(states))[1:]
    for stage, group in groupby(rest, key=lambda pair: pair[1].stage):
        indices = [index for index, _ in group]
        yield Stage[stage], indices[0], indices[-1]


def _draw_run(axes: Axes, row: int, stage: Stage, first: int, last: int, alphas: Sequence[float]) -> None:
    """A stretch of one stage, with alpha as the height of the fill."""
    left, width = first - 1, last - first + 1
    box = ((left, row + _LANE_BOTTOM), width, _LANE_TOP - _LANE_BOTTOM)
    if stage is Stage.EMBARGOED:
        axes.add_patch(Rectangle(*box, facecolor="white", edgecolor=_EMBARGO, hatch="////", linewidth=0))
        return
    if stage not in _FILL:
        return
    if stage is Stage.TRAINING:
        axes.add_patch(Rectangle(*box, facecolor=_FILL[stage], linewidth=0))
        return
    axes.add_patch(Rectangle(*box, facecolor=_TINT[stage], linewidth=0))
    heights = np.repeat(np.clip(alphas[first : last + 1], 0.0, 1.0), 2) * (_LANE_TOP - _LANE_BOTTOM)
    times = np.repeat(np.arange(left, last + 1), 2)[1:-1]
    floor = row + _LANE_TOP
    axes.fill_between(times, floor, floor - heights, color=_FILL[stage], linewidth=0)


def _draw_events(axes: Axes, row: int, life: _Life, states: Sequence[SlotState], end: str | None) -> list[int]:
    """Mark where a seed was kept for good and where it was cut; the times of the marks."""
    last = len(states) - 1
    fossil = [max(t - 1, 0) for t in range(life.first, life.last + 1) if states[t].stage == Stage.FOSSILIZED.name][:1]
    pruned = [life.last] if life.last < last else []
    if life.last == last:
        fossil += [last] if end == "kept" else []
        pruned += [last] if end == "pruned" else []
    for time, (shape, colour) in [*((t, _KEPT_MARK) for t in fossil), *((t, _PRUNED_MARK) for t in pruned)]:
        axes.plot(
            time,
            row + 0.5,
            marker=shape,
            color=colour,
            markersize=8.5,
            markeredgecolor="white",
            markeredgewidth=1.1,
            clip_on=False,
            zorder=6,
        )
    return fossil + pruned


def _draw_name(axes: Axes, row: int, life: _Life, marks: Sequence[int], before: float, after: float) -> float:
    """Write a seed's blueprint where there is room, as large as it fits.

    First inside the seed, between the marks; else on the empty lane behind it, then on the one before it; if all are
    too narrow, inside and shortened.
    """
    start, end = life.start, life.last
    borders = sorted({start, end, *marks})
    inside: list[_Room] = [(left, right, "left") for left, right in pairwise(borders)]
    places: list[_Room] = [*inside, (end, after, "left"), (before, start, "right")]
    name = axes.text(
        0,
        row + 0.515,
        life.blueprint,
        color=_INK,
        va="center",
        zorder=7,
        path_effects=[withStroke(linewidth=2.2, foreground="white", alpha=0.75)],
    )
    for size in _NAME_SIZES:
        for left, right, side in places:
            if _fits(axes, name, size, left, right, marks):
                return _place(axes, name, left, right, side, marks)
    left, right, side = max(inside, key=lambda place: place[1] - place[0])
    while len(name.get_text()) > 2 and not _fits(axes, name, _NAME_SIZES[-1], left, right, marks):
        name.set_text(name.get_text().removesuffix("…")[:-1] + "…")
    return _place(axes, name, left, right, side, marks)


def _fits(axes: Axes, name: Text, size: float, left: float, right: float, marks: Sequence[int]) -> bool:
    name.set_fontsize(size)
    return _width(axes, name) + _padding(axes, left in marks) + _padding(axes, right in marks) <= right - left


def _place(
    axes: Axes, name: Text, left: float, right: float, side: Literal["left", "right"], marks: Sequence[int]
) -> float:
    """Put ``name`` at that side of the room; where it ends, in decisions."""
    name.set_horizontalalignment(side)
    if side == "right":
        name.set_x(right - _padding(axes, right in marks))
        return right
    name.set_x(left + _padding(axes, left in marks))
    return name.get_position()[0] + _width(axes, name)


def _width(axes: Axes, name: Text) -> float:
    """Width of a name, in decisions."""
    return name.get_window_extent().width / axes.get_window_extent().width * float(np.ptp(axes.get_xlim()))


def _padding(axes: Axes, beside_mark: bool) -> float:
    """Room beside a name, in decisions."""
    points = 8 if beside_mark else 4
    return points * axes.figure.dpi / 72 / axes.get_window_extent().width * float(np.ptp(axes.get_xlim()))
