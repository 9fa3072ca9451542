"""Training on growing networks: the numbers that show whether it is healthy are written, and healthy they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from episodes import quick_task
from esper import simic
from esper.actions import HEAD_NAMES
from esper.env.growth_env import GrowthVectorEnv
from esper.tasks import Task, get_task
from esper.training import TamiyoConfig


def trained(run_dir: Path, task: Task, num_envs: int, updates: int) -> dict[str, np.ndarray]:
    """Each metric over the updates, from the file of a run that learns as ``esper train`` does; NaN where none."""
    tamiyo = TamiyoConfig()
    env = GrowthVectorEnv(num_envs, task, autoreset_mode=AutoresetMode.SAME_STEP)
    config = simic.TrainConfig(
        updates=updates,
        num_steps=task.horizon,
        ppo=tamiyo.ppo,
        network=tamiyo.network,
        normalize_observations=False,
        normalize_rewards=False,
    )
    simic.train([env], config=config, run_dir=run_dir)
    env.close()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def test_the_health_of_every_head_is_written(tmp_path: Path) -> None:
    metrics = trained(tmp_path, quick_task("digits", horizon=8), num_envs=4, updates=2)
    assert np.isfinite(metrics["explained_variance"]).all()
    for head in HEAD_NAMES:
        matters = metrics[f"head_share/{head}"] * 4 * 8 > 1
        for name in ("advantage_mean", "advantage_std", "entropy", "normalized_entropy"):
            assert np.isfinite(metrics[f"{name}/{head}"][matters]).all()
        assert np.nanmax(metrics[f"normalized_entropy/{head}"]) <= 1 + 1e-6
        assert np.nanmax(metrics[f"first_ratio_error/{head}"]) < 1e-5


@pytest.mark.slow
def test_growth_training_is_healthy(tmp_path: Path) -> None:
    """Ninety-six episodes. Advantages are measured before each head's are normalised, next to their spread."""
    metrics = trained(tmp_path, get_task("digits"), num_envs=8, updates=12)
    explained = metrics["explained_variance"]
    assert explained[-4:].mean() > max(0.2, explained[0])
    bias = np.abs(metrics["advantage_mean/op"] / metrics["advantage_std/op"])
    assert bias[-4:].mean() < min(0.5, bias[0])
    for head in HEAD_NAMES:
        assert np.nanmean(metrics[f"normalized_entropy/{head}"][-4:]) > 0.2, head
