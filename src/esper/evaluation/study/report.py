"""The report of a finished study: one self-contained HTML page, figures, and all results as JSON.

The page is understood without the docs; it has no scripts and loads nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from esper.evaluation.table import INTERQUARTILE_MEANS, Table, median_growth
from esper.figure import growth_figure
from esper.files import write_json_atomic
from esper.page import badge, facts, figure, note, page, table, write
from esper.tamiyo.policy.registry import trained_on


def write_report(study: Study) -> tuple[list[Claim], list[Path]]:
    """Judge the claims and write page, figures and tables of a finished study; the claims and what was written."""
    config, directory = study.config, study.directory
    units = set(study.units)
    results = {unit: study.results(unit) for unit in product(config.task, study.arms) if unit in units}
    fronts = {names.at_rent(names.TAMIYO, rent) for rent in config.rents}
    everything = Table(results, trained_on(config.policy))
    shown = Table({unit: found for unit, found in results.items() if unit[1] not in fronts}, everything.trained_on)
    found = claims(everything, config.rents, config.budgets, config.arm)
    figures = _draw(everything, shown, config, directory)
    file = directory / "report.html"
    meanings = {name: arm.meaning for name, arm in study.arms.items()}
    write(file, _page(shown, found=found, meanings=meanings, figures=figures, settings=_settings(study)))
    rows = [row.to_json() for row in everything.rows(INTERQUARTILE_MEANS)]
    curves = [asdict(point) for point in anytime(everything, config.budgets)]
    write_json_atomic(
        directory / "comparison.json",
        {"claims": [claim.to_json() for claim in found], "rows": rows, "anytime": curves},
    )
    return found, [file, directory / "comparison.json", *(path for path, _ in figures)]


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
    results: Table,
    *,
    found: Sequence[Claim],
    meanings: Mapping[str, str],
    figures: Sequence[tuple[Path, str]],
    settings: Mapping[str, str],
) -> str:
    """The page.

    Args:
        results: Of all arms that are to be shown.
        found: The claims, judged.
        meanings: What each arm is, by its name.
        figures: PNG files and their captions.
        settings: What a reader needs to run it again, as label → text.
    """
    return page(
        "Does growth pay, and does the learned controller matter?",
        _introduction(results),
        facts(settings),
        "<h2>Verdicts</h2>",
        *map(_claim, found),
        "<h2>The arms</h2>",
        facts({arm: meanings[arm] for arm in results.arms}),
        "<h2>Results by task</h2>",
        note(
            "Interquartile means over episodes with 95 % stratified-bootstrap intervals. J is the test score less the "
            "rent for added parameters: what a controller is trained for. P is the probability that an episode of "
            "Tamiyo comes to a higher J than one of the arm; above 0.5 speaks for Tamiyo. Differences are means over "
            "paired seeds. Every arm that was run is shown."
        ),
        *_by_task(results),
        "<h2>Figures</h2>",
        *(figure(path.read_bytes(), caption) for path, caption in figures),
    )


def _introduction(results: Table) -> str:
    return (
        "<p>A small network (the <b>host</b>) trains on a task. It has <b>slots</b> in which blocks can grow while "
        "it trains. A <b>controller</b> decides at every step whether to add a block, which kind, where and when, "
        "and which blocks to keep. <b>Tamiyo</b> is a controller that has learned this by reinforcement learning. "
        f"This page compares it with other controllers and with networks of a fixed form on {len(results.tasks)} "
        "tasks, on episodes that nothing was trained, tuned or chosen on. Test data were used for this page alone.</p>"
    )


def _claim(claim: Claim) -> str:
    kind = {"holds": "good", "holds in part": "open", "fails": "bad", "not tested": ""}[claim.verdict]
    head = ("rests on", "estimate [95 % interval]", "needed", "shown")
    rows = [(c.what, str(c.interval or "–"), f"> {c.threshold:g}", c.shown) for c in claim.checks]
    checks = table(head, rows, head[1:3]) if rows else note("Nothing that it rests on was run.")
    return f"<h3>{escape(claim.title)} {badge(claim.verdict, kind)}</h3>{checks}"


def _by_task(results: Table) -> Iterator[str]:
    columns = INTERQUARTILE_MEANS
    head = ("arm", "episodes", *(column.heading for column in columns.values()))
    rows = results.rows(columns)
    for task in results.tasks:
        unseen = "" if task in results.trained_on else " (Tamiyo was not trained on it)"
        lines = [(r.arm, str(r.episodes), *r.shown(columns, nothing="–")) for r in rows if r.task == task]
        yield f"<h3>{escape(task)}<span class=muted>{unseen}</span></h3>"
        yield table(head, lines, head[1:], marked=names.TAMIYO)
