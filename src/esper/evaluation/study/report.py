"""One self-contained HTML page, understood without the docs: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from esper.evaluation.statistics import Interval
from esper.evaluation.study import arms
from esper.evaluation.study.verdicts import COLUMNS, Claim
from esper.evaluation.table import Row, Table

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
.muted { color: #6B7785; font-size: .9rem; } img { max-width: 100%; } figure { margin: 1rem 0 2rem; }
"""


def html_report(
    table: Table,
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
    rows = table.rows(COLUMNS)
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
    kind = {"holds": "holds", "holds in part": "part", "fails": "fails"}[claim.verdict]
    rows = "".join(
        _cells([escape(c.what), _number(c.interval), f"&gt; {c.threshold:g}", "yes" if c.holds else "no"])
        for c in claim.checks
    )
    head = _cells(["rests on", "estimate [95 % interval]", "needed", "shown"], "th")
    return (
        f"<h3>{escape(claim.title)} <span class='verdict {kind}'>{claim.verdict}</span></h3><table>{head}{rows}</table>"
    )


def _rows(rows: Sequence[Row]) -> str:
    columns = ["arm", "episodes", "test score", "parameters", "training FLOPs", "J on test data", "J(Tamiyo) − J", "P"]
    lines = [
        _cells(
            [
                escape(row.arm),
                str(row.episodes),
                _number(row["test_score"]),
                f"{row['total_params'].estimate:,.0f}",
                f"{row['train_flops'].estimate:.2e}",
                _number(row["test_J"]),
                _number(row.intervals["difference"]),
                _number(row.intervals["improvement"], 2),
            ],
            kind="tamiyo" if row.arm == arms.TAMIYO else "",
        )
        for row in rows
    ]
    return f"<div class=scroll><table>{_cells(columns, 'th')}{''.join(lines)}</table></div>"


def _cells(texts: Iterable[str], tag: str = "td", kind: str = "") -> str:
    row = f"<tr class={kind}>" if kind else "<tr>"
    return row + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"


def _number(interval: Interval | None, digits: int = 3) -> str:
    if interval is None:
        return "–"
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f"<figure><img alt='{text}' src='data:image/png;base64,{data}'><figcaption>{text}</figcaption></figure>"
