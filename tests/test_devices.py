"""What must hold on every device, as ``benchmarks/gpu.py`` has it: on the CPU always, on a GPU where there is one."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

CHECKS = runpy.run_path(str(Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"))["CHECKS"]
LONG = ("every blueprint", "the stacked engine", "auditions", "Growth under autocast")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(LONG)) for name in CHECKS]
)
def test_on_every_device(check, device):
    CHECKS[check](device)
