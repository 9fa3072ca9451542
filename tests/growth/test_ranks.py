"""Two processes that train one network: the same decisions, the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("distributed_growth.py")


def test_two_ranks_decide_alike_and_hold_the_same_weights(tmp_path):
    command = [sys.executable, str(SCRIPT)]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path / "meet"), str(tmp_path / "out")]) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in (0, 1))
    assert first["decided"] == second["decided"]
    assert first["scores"] == second["scores"]
    assert first["seeds"] > 0
    assert len(first["parameters"]) == len(second["parameters"])
    assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))
