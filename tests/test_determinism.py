"""What `docs/reliability.md` promises of determinism and no other test holds: nothing of a process is in a result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import hashlib
import torch
import esper
from esper.simic import TrainConfig, train
from esper.tasks import get_task
from esper.env import GrowthVectorEnv

torch.set_num_threads(1)
task = get_task("wine")
task.horizon, task.steps_per_decision = 6, 2
result = train(GrowthVectorEnv(2, task), config=TrainConfig(updates=2, num_steps=8))
digest = hashlib.sha256()
for tensor in result.policy.network.state_dict().values():
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_processes_with_other_hashes_names_and_directories_come_to_the_same_bits(tmp_path):
    found = set()
    for seed in ("0", "1", "12345"):
        (tmp_path / seed).mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": f"UTC+{len(seed)}"}
        command = [sys.executable, "-c", RUN]
        done = subprocess.run(command, cwd=tmp_path / seed, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
