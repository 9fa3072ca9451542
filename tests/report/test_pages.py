"""``esper report``: one page of whatever lies in a run's directory, that needs nothing else."""

from __future__ import annotations

import json
import re

import pytest

from browser import CHROMIUM, overflow
from esper.cli import main
from esper.commands.grow import RESULT
from esper.growth import GrowthResult
from esper.report.training import read_metrics
from growing import Loop
from network.hosts import advance, fossilize, germinate

ROWS = [
    {"update": 1.0, "env_steps": 64.0, "return": None, "loss/<value>": 0.5},
    {"update": 2.0, "env_steps": 128.0, "return": 0.25, "loss/<value>": None},
]


def check_alone(page):
    """Nothing runs, and nothing is loaded from elsewhere."""
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=(?!'data:)", page)
    assert "http" not in page


@pytest.fixture
def growth(tmp_path):
    loop = Loop(horizon=5, rent=0).script(germinate("mlp"), advance(), fossilize())
    loop.epochs(5)
    result = loop.growth.result().to_json()
    found = {"growth": result, "test": {"Test accuracy": "41.7%"}, "data": {"data": "<mine>"}}
    (tmp_path / RESULT).write_text(json.dumps(found))
    return tmp_path


def test_a_growth(growth, capsys):
    assert main(["report", str(growth)]) == 0
    assert str(growth / "report.html") in capsys.readouterr().out.replace("\n", "")
    page = (growth / "report.html").read_text(encoding="utf-8")
    check_alone(page)
    result = GrowthResult.from_json(json.loads((growth / RESULT).read_text())["growth"])
    for words in (
        result.verdict.words,
        "Test accuracy",
        "41.7%",
        "&lt;mine&gt;",
        "kept at 3",
        "GERMINATE mlp (add) in 1",
    ):
        assert words in page, words


@pytest.fixture
def training(tmp_path):
    """Directory of a training run."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"update": 3, "ret')
    (tmp_path / "config.json").write_text('{"environment": "<mine>"}')
    interval = {"estimate": 0.5, "low": 0.4, "high": 0.625, "values": 2}
    row = {
        "task": "wine",
        "arm": "Tamiyo",
        "episodes": 2,
        "test_score": interval,
        "total_params": interval,
        "J": interval,
    }
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": [row]}))
    return tmp_path


def test_a_training_run(training, capsys):
    assert main(["report", str(training)]) == 0
    page = (training / "report.html").read_text(encoding="utf-8")
    check_alone(page)
    for words in (
        "Updates</dt><dd>2",
        "Steps</dt><dd>128",
        "0.25 (at the end)",
        "0.500 [0.400, 0.625]",
        "&lt;mine&gt;",
    ):
        assert words in page, words
    assert page.count("<img") == 3  # return; env_steps and the loss behind a fold
    assert "alt='loss/&lt;value&gt; by update'" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("run", ["growth", "training"])
def test_a_narrow_window_holds_the_page(run, request, tmp_path):
    directory = request.getfixturevalue(run)
    assert main(["report", str(directory)]) == 0
    assert [overflow(directory / "report.html", tmp_path, width) for width in (500, 900)] == [0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no update has been logged yet"), ('{"update": 1}\n{"upd\n{"update": 3}\n', "line 2"), ("[]", "line 1")],
)
def test_metrics_that_cannot_be_read_are_refused_by_line(tmp_path, content, message):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (None, "", "expected a finished run of `esper grow`"),
        (RESULT, "{}", "expected what `esper grow` writes"),
        (RESULT, '{"growth": {}, "test": {}, "data": {}}', "expected the result of a growth"),
        ("config.json", "{}", "expected a finished run"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys, file, content, message):
    if file is not None:
        (tmp_path / file).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_made_leaves_the_one_before(growth):
    (growth / "report.html").write_text("the one before")
    (growth / RESULT).write_text("{")
    assert main(["report", str(growth)]) == 2
    assert (growth / "report.html").read_text() == "the one before"
