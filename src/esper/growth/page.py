"""One growth in HTML: for a notebook, and for the page that ``esper report`` writes."""

from __future__ import annotations

from html import escape

from esper.figure import draw_growth
from esper.growth.explain import explain
from esper.growth.result import GrowthResult
from esper.growth.summary import NUMBERS, SEED_COLUMNS, seed_rows
from esper.page import facts, figure, fold, note, table, verdict

_KINDS = {"worth it": "good", "not worth it": "bad", "cannot tell": "open", "nothing grew": ""}


def growth_section(result: GrowthResult) -> str:
    """Verdict, picture, what grew, and what was decided and why."""
    if not result.steps:
        return f"<p>Nothing has been measured yet.</p>{facts(result.facts())}"
    found = result.verdict
    shown = {label: text for label, text in result.facts().items() if label != "Verdict"}
    parts = [verdict(found.words, _KINDS[found.answer])]
    if len(result.steps) > 1:
        drawn = draw_growth(result.figure_record()).rendered("svg")
        caption = f"{result.policy} grows a network on {result.task}: score, seeds and parameters, step by step"
        parts.append(figure(drawn, caption))
    parts += [facts(shown), "<h2>What grew</h2>", table(SEED_COLUMNS, seed_rows(result), NUMBERS)]
    return "".join([*parts, "<h2>What was decided, and why</h2>", _decisions(result), _details(result)])


def _decisions(result: GrowthResult) -> str:
    rows = [
        (str(step.decision), result.told(step.score), step.decided, step.reason)
        for step in result.steps
        if not step.decided.startswith("WAIT")
    ]
    judged = [
        ("end", "", f"{'keep' if seed.outcome == 'kept' else 'take out'} {seed.blueprint} in {seed.slot}", words)
        for seed in result.seeds
        if seed.ended is not None and (words := result.steps[-1].judged.get(seed.slot)) and words == seed.why_ended
    ]
    waits = len(result.steps) - len(rows)
    return table(("step", result.measure, "decided", "why"), [*rows, *judged]) + note(f"And {waits} waits.")


def _details(result: GrowthResult) -> str:
    """What was seen at each step, to be opened where one wants to know."""
    return "".join(
        fold(f"Step {step.decision}: {step.decided}", f"<pre>{escape(explain(result, step.decision))}</pre>")
        for step in result.steps
    )
