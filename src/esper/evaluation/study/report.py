"""The report of a finished study: one self-contained HTML page, figures, and all results as JSON.

The page is understood without the docs; it has no scripts and loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from html import escape
from itertools import product
from pathlib import Path

from esper.evaluation import names
from esper.evaluation.study.competitors import anytime
from esper.evaluation.study.figures import anytime_curves, rent_front, score_against_flops, score_against_parameters
from esper.evaluation.study.study import Study, StudyConfig
from esper.evaluation.study.verdicts import Claim, claims, too_few_seeds
from esper.evaluation.table import INTERQUARTILE_MEANS, Row, Table, median_growth
from esper.figure import growth_figure
from esper.files import write_json_atomic, written_whole
from esper.tamiyo.policy.registry import trained_on

_CSS = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1F2933; max-width: 76rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #E4E7EB; padding-bottom: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; margin: .8rem 0 1.6rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #E4E7EB; white-space: nowrap; }
th { color: #52606D; font-weight: 600; white-space: normal; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; }
tr.tamiyo { background: #E3F0FA; font-weight: 600; } .scroll { overflow-x: auto; }
.verdict { border-radius: .3rem; padding: .1rem .5rem; font-size: .85rem; font-weight: 600; color: white; }
.holds { background: #1F7A63; } .part { background: #B7791F; } .fails { background: #B42318; }
.untested { background: #6B7785; }
.muted { color: #6B7785; font-size: .9rem; } img { max-width: 100%; } figure { margin: 1rem 0 2rem; }
"""


def write_report(study: Study) -> tuple[list[Claim], list[Path]]:
    """Judge the claims and write page, figures and tables of a finished study; the claims and what was written."""
    config, directory = study.config, study.directory
    units = set(study.units)
    results = {unit: study.results(unit) for unit in product(config.task, study.arms) if unit in units}
    fronts = {names.at_rent(names.TAMIYO, rent) for rent in config.rents}
    everything = Table(results, trained_on(config.policy))
    table = Table({unit: found for unit, found in results.items() if unit[1] not in fronts}, everything.trained_on)
    found = claims(everything, config.rents, config.budgets, config.arm)
    figures = _draw(everything, table, config, directory)
    page = directory / "report.html"
    meanings = {name: arm.meaning for name, arm in study.arms.items()}
    text = _page(table, found=found, meanings=meanings, figures=figures, settings=_settings(study))
    with written_whole(page) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    rows = [row.to_json() for row in everything.rows(INTERQUARTILE_MEANS)]
    curves = [asdict(point) for point in anytime(everything, config.budgets)]
    write_json_atomic(
        directory / "comparison.json",
        {"claims": [claim.to_json() for claim in found], "rows": rows, "anytime": curves},
    )
    return found, [page, directory / "comparison.json", *(path for path, _ in figures)]


def _draw(everything: Table, table: Table, config: StudyConfig, directory: Path) -> list[tuple[Path, str]]:
    """Draw all figures; path and caption of each."""
    figures = [
        (
            directory / "score-parameters.png",
            "Test score against parameters: means with 95 % intervals; each random architecture is a grey dot; no arm "
            "lies above and to the left of the dotted Pareto front.",
        ),
        (
            directory / "score-flops.png",
            "Mean validation score against the FLOPs of training so far, pruned blocks and attribution included; the "
            "curve of the best of random begins where the search for it has ended.",
        ),
        (
            directory / "rent-front.png",
            "One policy under several rents (the price of a doubling of the parameters): mean size and test score.",
        ),
    ]
    score_against_parameters(table, figures[0][0])
    score_against_flops(table, figures[1][0])
    rent_front(everything, config.rents, figures[2][0])
    if config.budgets:
        path = directory / "anytime.png"
        anytime_curves(table, config.budgets, path)
        caption = (
            "Mean J on test data of what each competitor has found by validation data with so many times the compute "
            "of one growth, with 95 % intervals; the line is Tamiyo, with one growth."
        )
        figures.append((path, caption))
    for task in table.tasks:
        path = directory / f"growth-{task}.png"
        growth_figure(median_growth(table, task, names.TAMIYO), path)
        figures.append((path, f"{task}: the growth by Tamiyo whose J is the median one, decision by decision."))
    return figures


def _settings(study: Study) -> dict[str, str]:
    """What a reader needs to run the study again."""
    config = study.config
    options = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for name, value in asdict(config).items()
    )
    missing = {"Not run": "; ".join(f"{arm} on {task} ({why})" for (task, arm), why in study.obstacles.items())}
    return {
        "Date": date.today().isoformat(),
        "Episodes": f"{config.seeds} paired seeds on each task, from seed {config.seed}",
        **({"Few seeds": few} if (few := too_few_seeds(config.seeds, len(config.task))) else {}),
        "Rent": f"{config.rent:g} (points of score for each doubling of the parameters)",
        "Tamiyo was trained on": ", ".join(trained_on(config.policy)) or "unknown",
        "Command": f"esper compare {options}",
        **(missing if study.obstacles else {}),
    }


def _page(
    table: Table,
    *,
    found: Sequence[Claim],
    meanings: Mapping[str, str],
    figures: Sequence[tuple[Path, str]],
    settings: Mapping[str, str],
) -> str:
    """The page.

    Args:
        table: The results.
        found: The claims, judged.
        meanings: What each arm is, by its name.
        figures: PNG files and their captions.
        settings: What a reader needs to run it again, as label → text.
    """
    body = [
        "<h1>Does growth pay, and does the learned controller matter?</h1>",
        _introduction(table),
        _list(settings),
        "<h2>Verdicts</h2>",
        *map(_claim, found),
        "<h2>The arms</h2>",
        _list({arm: meanings[arm] for arm in table.arms}),
        "<h2>Results by task</h2>",
        "<p class=muted>Interquartile means over episodes with 95 % stratified-bootstrap intervals. J is the test "
        "score less the rent for added parameters: what a controller is trained for. P is the probability that an "
        "episode of Tamiyo comes to a higher J than one of the arm; above 0.5 speaks for Tamiyo. Differences are means "
        "over paired seeds. Every arm that was run is shown.</p>",
    ]
    rows = table.rows(INTERQUARTILE_MEANS)
    for task in table.tasks:
        unseen = "" if task in table.trained_on else " <span class=muted>(Tamiyo was not trained on it)</span>"
        body += [f"<h3>{escape(task)}{unseen}</h3>", _rows([row for row in rows if row.task == task])]
    body.append("<h2>Figures</h2>")
    body += [_figure(path, caption) for path, caption in figures]
    style = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><style>{_CSS}</style>"
    title = "<title>Esper: a comparison of growth controllers</title>"
    return f"<!doctype html><html lang=en><head>{style}{title}</head><body>{''.join(body)}</body></html>\n"


def _introduction(table: Table) -> str:
    return (
        "<p>A small network (the <b>host</b>) trains on a task. It has <b>slots</b> in which blocks can grow while "
        "it trains. A <b>controller</b> decides at every step whether to add a block, which kind, where and when, "
        "and which blocks to keep. <b>Tamiyo</b> is a controller that has learned this by reinforcement learning. "
        f"This page compares it with other controllers and with networks of a fixed form on {len(table.tasks)} tasks, "
        "on episodes that nothing was trained, tuned or chosen on. Test data were used for this page alone.</p>"
    )


def _list(entries: Mapping[str, str]) -> str:
    return "<ul>" + "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in entries.items()) + "</ul>"


def _claim(claim: Claim) -> str:
    kind = {"holds": "holds", "holds in part": "part", "fails": "fails", "not tested": "untested"}[claim.verdict]
    rows = "".join(
        _cells([escape(c.what), str(c.interval or "–"), f"&gt; {c.threshold:g}", c.shown]) for c in claim.checks
    )
    head = _cells(["rests on", "estimate [95 % interval]", "needed", "shown"], "th")
    return (
        f"<h3>{escape(claim.title)} <span class='verdict {kind}'>{claim.verdict}</span></h3><table>{head}{rows}</table>"
    )


def _rows(rows: Sequence[Row]) -> str:
    columns = INTERQUARTILE_MEANS
    lines = [
        _cells(
            [escape(row.arm), str(row.episodes), *row.shown(columns, nothing="–")],
            kind="tamiyo" if row.arm == names.TAMIYO else "",
        )
        for row in rows
    ]
    head = _cells(["arm", "episodes", *(column.heading for column in columns.values())], "th")
    return f"<div class=scroll><table>{head}{''.join(lines)}</table></div>"


def _cells(texts: Iterable[str], tag: str = "td", kind: str = "") -> str:
    row = f"<tr class={kind}>" if kind else "<tr>"
    return row + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"
