"""What is shown of a run, in a terminal and in a log."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from esper.heads import Head, HeadTable
from esper.simic import Plan, Progress
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

HEADS = HeadTable([Head("verb", 2, choices=("wait", "act"))])
POLICY = LSTMPolicyBundle(FactoredRecurrentActorCritic(heads=HEADS, state_dim=1, num_slots=0, hidden_dim=4, head_dim=4))
PLAN = Plan(updates=4, first_update=1, vector_steps=10, policy=POLICY)
METRICS = {
    "update": 2.0,
    "env_steps": 12_345.0,
    "return": 1.25,
    "episode/score": 0.75,
    "episode/added_params": 2048.0,
    "choice_share/wait": 0.4,
    "choice_share/act": 0.6,
    "normalized_entropy/verb": 0.87,
    "explained_variance": 0.5,
    "steps_per_second": 4321.0,
}


def shown(*, terminal: bool, quiet: bool, updates: list[dict[str, float]]) -> list[str]:
    output = io.StringIO()
    progress = Progress(
        quiet=quiet, console=Console(file=output, force_terminal=terminal, width=100, color_system=None)
    )
    progress.on_start(PLAN)
    progress.on_step()
    for metrics in updates:
        progress.on_update(metrics)
    progress.on_end()
    return output.getvalue().splitlines()


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_one_line_an_update_when_quiet_or_not_in_a_terminal(terminal: bool, quiet: bool) -> None:
    lines = shown(terminal=terminal, quiet=quiet, updates=[METRICS, {**METRICS, "update": 3.0}])
    assert len(lines) == 2
    for words in (
        "update 2/4  return 1.25",
        "added params 2048",
        "score 0.75",
        "verb wait 40%, act 60%",
        "entropy verb 0.87",
        "explained variance 0.50",
        "steps 12,345",
        "steps/s 4,321",
        "ETA 0:0",
    ):
        assert words in lines[0]


def test_a_live_table_in_a_terminal() -> None:
    lines = "\n".join(shown(terminal=True, quiet=False, updates=[METRICS]))
    for words in ("update 2/4", "score", "0.75", "wait 40%, act 60%", "ETA"):
        assert words in lines


def test_what_is_not_known_now_keeps_its_last_value() -> None:
    without = {**METRICS, "update": 3.0, "return": math.nan}
    del without["episode/score"]
    last = shown(terminal=False, quiet=True, updates=[METRICS, without])[-1]
    assert "update 3/4  return 1.25" in last
    assert "score 0.75" in last


def test_in_a_terminal_of_80_columns_every_value_has_a_line() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    progress = Progress(console=console)
    progress.on_start(PLAN)
    progress.on_update(METRICS)
    progress.on_end()
    console.print(progress._table())
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert any(set(line) == {"━"} for line in lines), "the bar stands on a line of its own"
    assert any(line.split() == ["return", "1.25"] for line in lines)
    assert all(len(line) <= 80 for line in lines)
