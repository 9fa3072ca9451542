"""A growth logs what happens in it by one table of names, the same to every tracker."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from esper.growth.log import STEP, VERDICT, numbers, step_row, verdict_row
from growing import Loop
from network.hosts import advance, fossilize, germinate

ROOT = Path(__file__).resolve().parents[2]


def grown(**options):
    rows = []
    loop = Loop(log=lambda row, step: rows.append((step, row)), **options)
    loop.script(germinate("mlp"), advance(), fossilize())
    loop.epochs(5)
    return loop, rows


def named(name):
    """What the table calls it."""
    return any(name.startswith(entry.name.partition("{")[0]) for entry in (*STEP, *VERDICT))


def test_every_step_is_one_row_and_the_last_one_holds_the_verdict():
    loop, rows = grown(horizon=5, rent=0)
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5]
    for (_, row), step in zip(rows, loop.growth.history, strict=True):
        assert row.items() >= step_row(step).items()
        assert (row["growth/loss"], row["growth/score"]) == (step.loss, step.score)
        assert all(named(name) for name in row)
    told = [row for _, row in rows]
    assert [row.get("growth/decision", "").partition(" (")[0] for row in told[:3]] == [
        "GERMINATE mlp",
        "ADVANCE 1 to 1.0",
        "FOSSILIZE 1",
    ]
    assert told[0]["growth/event/1"] == "germinated, mlp, now training"
    assert [row["growth/stage/1"] for row in told] == [0, 1, 3, 4, 4]
    assert [row["growth/alpha/1"] for row in told] == [0, 0, 1, 1, 1]
    assert told[2]["growth/contribution/1"] == loop.growth.history[2].contributions["1"]
    assert told[-1].items() >= verdict_row(loop.growth.result()).items()
    assert [("growth/verdict" in row) for row in told] == [False] * 4 + [True]
    assert told[-1]["growth/J"] == loop.growth.result().J


def test_finish_logs_the_latest_step_again_as_it_is_now():
    loop, rows = grown(rent=5.0)
    assert all("growth/verdict" not in row for _, row in rows)
    loop.growth.finish(loop.evaluate)
    assert rows[-1][0] == rows[-2][0] == 5
    assert "growth/verdict" in rows[-1][1]
    loop.growth.finish(loop.evaluate)
    assert len(rows) == 6, "a further call does nothing"


def test_auditions_rollbacks_and_judgements_are_told_and_what_is_unknown_is_not():
    loop, _ = grown(horizon=5)
    step = replace(
        loop.growth.history[0],
        loss=math.nan,
        train_loss=None,
        rolled_back=True,
        auditions={"1": {"mlp": 0.5}},
        judged={"3": "so"},
    )
    row = step_row(step)
    assert row["growth/audition/1/mlp"] == 0.5
    assert row["growth/rolled_back"] == 1.0
    assert row["growth/judged/3"] == "so"
    assert {"growth/loss", "growth/train_loss"}.isdisjoint(row)
    assert all(isinstance(value, float) for value in numbers(row).values())
    assert "growth/judged/3" not in numbers(row)


def test_a_tracker_that_fails_leaves_the_step_done():
    def fail(row, step):
        raise OSError("no connection")

    loop = Loop(log=fail).script(germinate("mlp"))
    loop.train()
    with pytest.raises(OSError, match="no connection"):
        loop.growth.step(loop.evaluate)
    assert len(loop.growth.history) == 1
    assert loop.growth.network.slots[0].seed is not None


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="log is a function of"):
        Loop(log="wandb")


def test_units_and_meanings_are_said_of_all_and_stand_in_the_docs():
    assert all(entry.unit and entry.meaning for entry in (*STEP, *VERDICT))
    assert len({entry.name for entry in (*STEP, *VERDICT)}) == len(STEP) + len(VERDICT)
    page = (ROOT / "docs" / "grow_your_own_model.md").read_text(encoding="utf-8")
    for entry in (*STEP, *VERDICT):
        assert f"| `{entry.name}` | {entry.unit} | {entry.meaning} |" in page, entry.name
