"""One thread and fixed seeds for every test."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Shapes in signatures are checked while the tests run. Left out are the files that check what users hand them: there an
# error of their own says what to do, and the tests look for it; and seeds, which tests compile: network/test_shapes.py
# checks theirs.
install_import_hook(
    [
        "esper.network.host_call",
        "esper.simic.advantages",
        "esper.simic.rollout_buffer",
        "esper.simic.training.stepping",
        "esper.tamiyo.networks.action_tree",
        "esper.tamiyo.networks.moments",
        "esper.tamiyo.networks.slot_encoder",
        "esper.tamiyo.networks.standardizer",
    ],
    "shapes.checked",
)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries that use the global generator)
    torch.manual_seed(0)
