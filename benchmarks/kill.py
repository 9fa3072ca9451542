"""Kill commands with SIGKILL at random moments, resume them, and compare with an undisturbed run, byte for byte.

    python benchmarks/kill.py ppo --kills 50
    python benchmarks/kill.py train --kills 50 --victim worker
    python benchmarks/kill.py compare --kills 50 --victim worker
    python benchmarks/kill.py grow --kills 50

Each run is begun, killed (or one of its worker processes is) at a random moment, resumed, killed again, and resumed to
the end. Metrics (but for times), weights and results must then be those of a run that nobody touched. Kills that came
after the end are not counted. Prints one line per run, and the counts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from esper.cli import COMMANDS, main
from esper.simic.training.checkpoint import holds_checkpoint
from esper.simic.training.phases import Phases

TIMES = {"steps_per_second", "seconds", "contribution_seconds", *Phases().metrics()}

PPO = ["ppo", "--env", "Echo-v0", "--updates", "8", "--num-envs", "4", "--num-steps", "16", "--episodes",
       "0", "--checkpoint-every", "1", "--quiet"]  # fmt: skip
TRAIN = ["train", "--task", "wine", "--num-envs", "2", "--updates", "2", "--eval-episodes", "2", "--quiet"]
GROW = ["grow", "--task", "wine", "--epochs", "8", "--policy", "random", "--quiet"]
COMPARE = ["compare", "--task", "wine", "--seeds", "2", "--random-architectures", "2", "--quiet"]


class Echo(VectorEnv):
    """Say what is shown; it can be kept and taken up again, as a resumed run needs."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (declared so by gymnasium)

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.single_observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        self.single_action_space = gymnasium.spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        """Begin."""
        self.random, self.shown, self.steps = np.random.default_rng(seed), np.zeros(self.num_envs, dtype=int), 0
        return self._next(), {}

    def _next(self):
        self.shown = self.random.integers(3, size=self.num_envs)
        return np.eye(3, dtype=np.float32)[self.shown]

    def step(self, actions):
        """Reward 1 for what is shown now; an episode has 10 steps."""
        rewards = (actions == self.shown).astype(float)
        self.steps += 1
        ended = np.full(self.num_envs, self.steps % 10 == 0)
        return self._next(), rewards, ended, np.zeros_like(ended), {}

    def state_dict(self):
        """Everything."""
        return {"random": self.random.bit_generator.state, "shown": self.shown.copy(), "steps": self.steps}

    def load_state_dict(self, state):
        """Go on."""
        self.random = np.random.default_rng()
        self.random.bit_generator.state = state["random"]
        self.shown, self.steps = state["shown"].copy(), state["steps"]
        return np.eye(3, dtype=np.float32)[self.shown]


gymnasium.register("Echo-v0", vector_entry_point=Echo)


def arguments(command: str, out: Path, workers: int) -> list[str]:
    """What begins a command in ``out``, or goes on with it."""
    if command == "ppo":
        return [*PPO, "--run-dir", str(out), *(["--resume"] if holds_checkpoint(out / "checkpoint") else [])]
    if command == "compare":
        return [*COMPARE, "--workers", str(workers), "--out", str(out)]
    if command == "grow":
        return ["grow", "--resume", str(out), "--quiet"] if (out / "checkpoint.pt").exists() else begun_anew(out)
    if (out / "command.json").exists():
        return ["train", "--resume", str(out), "--quiet"]
    return [*TRAIN, "--num-workers", str(workers), "--out", str(out)]


def begun_anew(out: Path) -> list[str]:
    """Of a growth that was stopped before the end of its first epoch nothing is kept."""
    shutil.rmtree(out, ignore_errors=True)
    return [*GROW, "--out", str(out)]


def begin(command: str, out: Path, workers: int) -> int:
    """Run a command in a fork of this process, which has imported everything; its process id."""
    given = arguments(command, out, workers)
    child = os.fork()
    if child == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        code = 70
        try:
            code = main(given)
        finally:
            os._exit(code)
    return child


def found(command: str, out: Path) -> dict[str, object]:
    """What must not differ."""
    if command == "compare":
        results = [path for path in (out / "results").iterdir() if not path.name.startswith(".")]  # half written
        return {path.name: path.read_bytes() for path in [*results, out / "comparison.json"]}
    if command == "grow":
        program = torch.export.load(out / "grown.pt2")
        weights = {name: tensor.tolist() for name, tensor in program.state_dict.items()}
        told = [without_times(json.loads((out / name).read_text())) for name in ("growth.json", "manifest.json")]
        return {"weights": weights, "told": told}
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    kept: dict[str, object] = {"rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows]}
    names = ["checkpoint/policy.safetensors", "checkpoint/state.safetensors"]
    names += ["policy/policy.safetensors", "comparison.json"] if command == "train" else []
    return kept | {name: (out / name).read_bytes() for name in names}


def without_times(value: Any) -> Any:
    """What a growth tells, but for how long it took."""
    if isinstance(value, list):
        return [without_times(each) for each in value]
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return value


def children(process: int) -> list[int]:
    """Its worker processes, without what Python keeps beside them."""
    pattern = ["pgrep", "-P", str(process), "-f", "spawn_main"]
    listed = subprocess.run(pattern, capture_output=True, text=True, check=False).stdout
    return [int(line) for line in listed.split()]


def finish(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def trial(command: str, out: Path, workers: int, victim: str, seconds: float) -> tuple[list[str], int, int]:
    """Begin, kill twice, go on to the end; what happened when, how many kills hit, and the last exit code."""
    happened, hits, left = [], 0, seconds
    for _ in range(2):
        moment = random.uniform(0, left)
        left = max(left - moment, seconds / 4)  # what goes on has less to do, but it starts up, too
        process = begin(command, out, workers)
        time.sleep(moment)
        targets = children(process) if victim == "worker" else [process]
        if targets:
            with suppress(ProcessLookupError):
                os.kill(random.choice(targets), signal.SIGKILL)
        code = finish(process)
        hits += code != 0
        happened.append(f"{moment:.2f} s (exit code {code})")
    return happened, hits, finish(begin(command, out, workers))


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["train", "ppo", "compare", "grow"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--victim", choices=["parent", "worker"], default="parent")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    for home, _ in COMMANDS.values():
        importlib.import_module(home.split(":")[0])  # once, before the forks
    workers = 2 if options.victim == "worker" else options.workers
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        started = time.perf_counter()
        assert finish(begin(options.command, whole, workers)) == 0, "the undisturbed run failed"
        seconds = time.perf_counter() - started
        expected = found(options.command, whole)
        lost = kills = trials = 0
        while kills < options.kills:
            out = Path(place) / "killed"
            happened, hits, code = trial(options.command, out, workers, options.victim, seconds)
            same = code == 0 and found(options.command, out) == expected
            lost, kills, trials = lost + (not same), kills + hits, trials + 1
            verdict = "the same" if same else f"LOST, exit code {code}"
            print(f"run {trials}: killed at {' and '.join(happened)}: {verdict}", flush=True)
            shutil.rmtree(out)
    print(f"{options.command}, {options.victim}: {kills} kills in {trials} runs of {seconds:.1f} s, {lost} runs differ")


if __name__ == "__main__":
    run()
