"""What ends its process, as a machine that fails does, and what shows which it is in; workers import it by name."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym
import numpy as np

from esper.env.engine.loop import LoopEngine
from esper.simic import Callback


class Mortal(LoopEngine):
    """Dies after the work of a step is done and before it is answered, as often as ``deaths`` holds letters.

    The file holds one letter for each death to come.
    """

    def __init__(self, task, deaths, num_hosts):
        super().__init__(task, num_hosts)
        self.deaths, self.steps = Path(deaths), 0

    def step(self, decisions):
        reports = super().step(decisions)
        self.steps += 1
        if self.steps == 3 and 0 in decisions and decisions.keys() != {0}:  # in the share of two rows
            die(self.deaths)
        return reports


class Idle:
    """Does nothing, and takes a CPU for it."""

    def ask(self):
        return "here"


def die(deaths):
    """End this process, if a death is left."""
    left = Path(deaths).read_text(encoding="utf-8")
    if left:
        Path(deaths).write_text(left[1:], encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def survivor(deaths):
    """What a process that has outlived the deaths to come says."""
    die(deaths)
    return "done"


def refuse():
    """Raise what a unit raises."""
    raise ValueError("no such thing")


class Numbered(gym.Wrapper):
    """Shows besides which process it is in: nothing that a seed decides."""

    def step(self, action):
        observation, *rest = self.env.step(action)
        return observation + np.float32(os.getpid()), *rest


class StopAfter(Callback):
    """Ends the run with an error, after a number of updates."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_update(self, metrics: Mapping[str, float]) -> None:
        if metrics["update"] == self.updates:
            raise RuntimeError("crash")
