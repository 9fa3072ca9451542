"""Environments that close themselves."""

import pytest

from episodes import quick_task
from esper.env import GrowthVectorEnv


@pytest.fixture
def make_env():
    envs = []

    def make(num_envs=2, task="digits", horizon=8, **kwargs):
        envs.append(GrowthVectorEnv(num_envs, quick_task(task, horizon), **kwargs))
        return envs[-1]

    yield make
    for env in envs:
        env.close()
