"""Rates that change over a training: their values at every update, in files, and on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tyro

from esper.simic import Callback, NetworkOptions, PPOConfig, StopTraining, TrainConfig, train
from esper.simic.schedules import rate
from esper.simic.training.run_directory import read_config


def quarter_of_what_remains(remaining: float) -> float:
    return remaining / 4


def config(updates: int = 4, **ppo: Any) -> TrainConfig:
    network = NetworkOptions(hidden_dim=4, head_dim=4)
    ppo_config = PPOConfig(**{"epochs": 1, "minibatches": 1, **ppo})
    return TrainConfig(updates=updates, num_envs=2, num_steps=4, network=network, ppo=ppo_config, checkpoint_every=1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (0.1, [0.1, 0.1, 0.1, 0.1]),
        ("linear:0.1", [0.1, 0.075, 0.05, 0.025]),
        ("linear:0.1:0.02", [0.1, 0.08, 0.06, 0.04]),
        ("cosine:0.1", [0.05 + 0.05 * math.cos(math.pi * t / 4) for t in range(4)]),
        ("cosine:0.1:0.3", [0.2 - 0.1 * math.cos(math.pi * t / 4) for t in range(4)]),
        (quarter_of_what_remains, [0.25, 0.1875, 0.125, 0.0625]),
        ("math:sqrt", [1.0, math.sqrt(0.75), math.sqrt(0.5), 0.5]),
    ],
    ids=["constant", "linear", "linear_to", "cosine", "cosine_to", "function", "name"],
)
def test_a_rate_has_its_value_at_every_update(schedule: Any, expected: list[float]) -> None:
    rows = train("CartPole-v1", config=config(learning_rate=schedule, clip=schedule)).metrics
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    assert [row["clip"] for row in rows] == pytest.approx(expected)


def test_the_rate_is_the_one_that_the_optimiser_steps_with() -> None:
    """A rate of zero in the second half: the weights stay."""
    seen = []

    class Weights(Callback):
        def on_start(self, plan):
            self.policy = plan.policy

        def on_update(self, metrics):
            seen.append(self.policy.network.critic.weight.detach().clone())

    train("CartPole-v1", config=config(learning_rate=lambda left: float(left > 0.5)), callback=Weights())
    assert (seen[0] != seen[1]).any()
    assert (seen[1] == seen[2]).all()
    assert (seen[2] == seen[3]).all()


@pytest.mark.parametrize("schedule", ["cosine:0.1:0.01", quarter_of_what_remains], ids=["cosine", "function"])
def test_a_resumed_run_goes_on_with_the_rate_where_it_was(schedule: Any, tmp_path: Path) -> None:
    class StopAfterTwo(Callback):
        def on_update(self, metrics):
            if metrics["update"] == 2:
                raise StopTraining

    options = config(updates=5, learning_rate=schedule)
    train("CartPole-v1", config=options, run_dir=tmp_path, callback=StopAfterTwo())
    rest = train("CartPole-v1", config=options, run_dir=tmp_path, resume=True).metrics
    assert [row["update"] for row in rest] == [3, 4, 5]
    assert [row["learning_rate"] for row in rest] == [rate("", schedule, 1 - done / 5) for done in (2, 3, 4)]


def test_a_function_is_written_by_its_name(tmp_path: Path, caplog) -> None:
    train("CartPole-v1", config=config(updates=1, clip=quarter_of_what_remains), run_dir=tmp_path)
    name = f"{__name__}:quarter_of_what_remains"
    assert json.loads((tmp_path / "config.json").read_text())["train"]["ppo"]["clip"] == name
    assert read_config(tmp_path).train.ppo.clip == name
    train("CartPole-v1", config=config(updates=2, clip=0.1), run_dir=tmp_path, resume=True)
    assert f"ppo.clip=0.1 (it was {name})" in caplog.text


@pytest.mark.parametrize("option", ["learning_rate", "clip"])
@pytest.mark.parametrize(
    "schedule",
    [0.0, -0.1, math.nan, math.inf, "linear", "linear:", "linear:0", "linear:0.1:-1", "cosine:0.1:0.2:0.3", "fast:0.1"],
)
def test_what_is_no_schedule_is_refused_by_name(option: str, schedule: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option}: expected a number above 0.*'linear:START:END'.*got {schedule!r}"):
        PPOConfig(**{option: schedule})


def test_a_clip_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="clip: expected a number above 0 and up to 1"):
        PPOConfig(clip="linear:0.2:1.1")


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (lambda left: left - 2, r"clip: expected a number from 0 to 1 .*lambda>\(1\), got -1.0"),
        (lambda left: 2 * left, "got 2.0"),
        (lambda left: math.nan, "got nan"),
        (lambda left: None, "got None"),
        (
            "no_such_module:rate",
            "clip: expected module:function, got 'no_such_module:rate': importing 'no_such",
        ),
        ("math:no_such_function", "got 'math:no_such_function'"),
    ],
)
def test_a_function_that_gives_no_rate_is_named(schedule: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rate("clip", schedule, 1.0, most=1)


def test_a_training_ends_at_a_rate_that_is_none() -> None:
    with pytest.raises(ValueError, match="learning_rate: expected a number from 0 to inf"):
        train("CartPole-v1", config=config(learning_rate=lambda left: math.nan))


def test_a_schedule_is_one_word_of_the_command_line() -> None:
    words = ["--learning-rate", "cosine:1e-3:1e-5", "--clip", "0.1"]
    parsed = tyro.cli(PPOConfig, args=words)
    assert (parsed.learning_rate, parsed.clip) == ("cosine:1e-3:1e-5", 0.1)
    assert tyro.cli(PPOConfig, args=[]) == PPOConfig()
