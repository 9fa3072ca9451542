"""Many episodes in one process: whether memory, descriptors, threads and throughput stay where they are.

    python benchmarks/soak.py --episodes 2000
    python benchmarks/soak.py --episodes 300 --workers 2 --task digits --hosts 4

Episodes of random legal decisions, with auditions, one after the other in one environment; every twentieth of them a
number breaks in one host, so that roll-backs are among what must not leak. Prints one line every ``--every`` episodes:
resident memory of this process and of its workers, tensors alive, open descriptors, threads, episodes per second. Ends
with exit code 1 if from the end of the first quarter to the end memory has grown by more than ``--tolerance``, or
descriptors or threads have.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from esper.allocator import keep_freed_memory
from esper.auditions import Auditions
from esper.env.growth_env import GrowthVectorEnv
from esper.files import write_json_atomic
from esper.tamiyo.policy.rules import RandomPolicy
from esper.tasks import TASKS, get_task

MEGABYTE = 2**20


def resident(process: int | str) -> float:
    """Memory of a process in megabytes, as the system counts it."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def children() -> list[str]:
    """The processes that this one has started."""
    return [c for task in Path("/proc/self/task").iterdir() for c in (task / "children").read_text().split()]


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def measured() -> dict[str, Any]:
    """What must stay flat, now."""
    return {
        "megabytes": round(resident("self"), 1),
        "worker_megabytes": [round(resident(child), 1) for child in children()],
        "tensors": tensors_alive(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }


def break_a_number(env: GrowthVectorEnv) -> None:
    """In the first host, where the hosts are in this process."""
    runs = getattr(env.engine, "runs", None)
    if runs:
        with torch.no_grad():
            next(runs[0].network.model.parameters()).view(-1)[0] = torch.nan


def play(env: GrowthVectorEnv, policy: RandomPolicy, *, fault: bool) -> None:
    """One episode in every row; afterwards the next have begun."""
    observation, _ = env.reset()
    policy.reset(env.num_envs, 0)
    for decision in range(env.task.horizon):
        if fault and decision == env.task.horizon // 2:
            break_a_number(env)
        observation, *_ = env.step(policy.act(observation))


def soak(options: argparse.Namespace) -> list[dict[str, Any]]:
    task = get_task(options.task)
    task.horizon, task.steps_per_decision = options.decisions, 2
    env = GrowthVectorEnv(
        options.hosts, task, num_workers=options.workers, engine=options.engine, auditions=Auditions()
    )
    env.reset(seed=options.seed)
    policy, played, rows = RandomPolicy(), 0, []
    while played < options.episodes:
        target = min(played + options.every, options.episodes)
        began, before = time.perf_counter(), played
        while played < target:
            play(env, policy, fault=(played // options.hosts) % 20 == 19)
            played += options.hosts
        rate = (played - before) / (time.perf_counter() - began)
        rows.append({"episodes": played, **measured(), "episodes_per_second": round(rate, 2)})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    env.close()
    return rows


def complaints(rows: list[dict[str, Any]], tolerance: float) -> list[str]:
    """What has grown since the end of the first quarter."""
    first, last = rows[len(rows) // 4], rows[-1]
    found = []
    for name in ("descriptors", "threads"):
        if last[name] > first[name]:
            found.append(f"{name}: {first[name]} became {last[name]}")
    sizes = [(row["megabytes"], *row["worker_megabytes"]) for row in (first, last)]
    for before, after in zip(*sizes, strict=False):
        if after > before + tolerance:
            found.append(f"memory: {before} MB became {after} MB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--task", choices=[*TASKS], default="digits")
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--decisions", type=int, default=12, help="of an episode")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", choices=["stacked", "loop"], default="stacked")
    parser.add_argument("--every", type=int, default=100, help="episodes between two lines")
    parser.add_argument("--tolerance", type=float, default=16.0, help="megabytes by which memory may grow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="directory for soak-DATE.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    rows = soak(options)
    found = complaints(rows, options.tolerance)
    if options.out is not None:
        settings = {k: v for k, v in vars(options).items() if k != "out"}
        result = {"python": platform.python_version(), "torch": torch.__version__, "settings": settings, "rows": rows}
        write_json_atomic(options.out / f"soak-{datetime.date.today()}.json", result)
    print("; ".join(found) or "flat")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
