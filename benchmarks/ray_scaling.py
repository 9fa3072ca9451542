"""What collecting on Ray costs, and how far it scales: measured with 1 and 2 actors, simulated up to 1,000.

    python benchmarks/ray_scaling.py --out build/ray_scaling.json

Measures the pieces (bytes; seconds of an engine, of the learner's decisions, of a call, of an update), simulates
decisions event by event from these pieces alone, and compares with what 1 and 2 actors take, in turns. Then simulates
more workers, at some delays of the network. See docs/scaling.md for the model in closed form.
"""

from __future__ import annotations

import argparse
import heapq
import json
import pickle
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from esper import simic
from esper.env.engine.engine import Engine
from esper.env.engine.factory import make_engine
from esper.env.engine.parallel import ParallelEngine, Share
from esper.env.engine.ray_workers import _ACTORS, RayWorkers
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import evaluation_seeds
from esper.simic import NetworkOptions, TrainConfig
from esper.tamiyo.policy.registry import make_policy
from esper.tamiyo.policy.rules import RandomPolicy
from esper.tasks import Task
from esper.training import PPO_FOR_GROWTH


@dataclass
class Pieces:
    """Seconds, on one core each."""

    engine: float
    """A decision of one worker's engine, geometric mean, as it was in an actor that worked alone."""
    jitter: float
    """Standard deviation of the logarithm of that, from decision to decision."""
    learner_fixed: float
    learner_host: float
    """To decide for all hosts, and to make observations of their reports."""
    call: float
    """What the learner does for one call of one worker."""
    round_trip: float
    """From a call to its answer, when there is nothing to do."""
    update_sample: float
    """Of the PPO update, for one decision of one host."""


def simulate(pieces: Pieces, workers: int, hosts: int, decisions: int, delay: float, seed: int = 0) -> float:
    """Seconds per decision, update included: ``hosts`` a worker, one-way ``delay`` of the network on average."""
    rng, clock = np.random.default_rng(seed), 0.0
    way = max(pieces.round_trip - pieces.call, 0.0) / 2
    for _ in range(decisions):
        clock += pieces.learner_fixed + workers * hosts * pieces.learner_host
        answers: list[float] = []
        for _ in range(workers):
            clock += pieces.call / 2  # calls leave one after the other
            ways = 2 * way + rng.exponential(delay, 2).sum() if delay else 2 * way
            work = pieces.engine * np.exp(pieces.jitter * rng.standard_normal())
            heapq.heappush(answers, clock + ways + work)
        while answers:  # and answers are taken up one after the other
            clock = max(clock, heapq.heappop(answers)) + pieces.call / 2
        clock += workers * hosts * pieces.update_sample
    return clock / decisions


def decide(env: GrowthVectorEnv, decisions: int, policy: RandomPolicy) -> list[float]:
    """Seconds of each step of the environment, after one to warm up."""
    observation, _ = env.reset(seed=0)
    policy.reset(env.num_envs, 0)
    seconds = []
    for _ in range(decisions + 1):
        action = policy.act(observation)
        start = time.perf_counter()
        observation = env.step(action)[0]
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


class Timed(Engine):
    """An engine that keeps what each step took."""

    def __init__(self, task: Task, num_hosts: int) -> None:
        self.engine, self.took = make_engine(task, num_hosts), []
        self.num_hosts, self.slot_names = num_hosts, self.engine.slot_names

    def reset(self, episodes):
        return self.engine.reset(episodes)

    def step(self, decisions):
        start = time.perf_counter()
        reports = self.engine.step(decisions)
        self.took.append(time.perf_counter() - start)
        return reports

    def test_scores(self, rows):
        return self.engine.test_scores(rows)

    def seconds(self, _: None) -> list[float]:
        """Of every step so far."""
        return self.took


def line(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Fixed part and slope through two measurements."""
    slope = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    slope = max(slope, 0.0)
    return max(seconds[0] - slope * sizes[0], 0.0), slope


def measure_learner(task: str, sizes: list[int], repeats: int) -> list[float]:
    """Median seconds to decide for so many hosts and to make observations of their reports."""
    policy, found = make_policy("tamiyo"), []
    for size in sizes:
        env = GrowthVectorEnv(size, task)
        observation, _ = env.reset(seed=0)
        policy.reset(size, 0)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            policy.act(observation)
            env._observe(), env._info()
            seconds.append(time.perf_counter() - start)
        found.append(float(np.median(seconds)))
    return found


def measure_bytes(task: str) -> dict[str, int]:
    """What travels, pickled as Ray does it."""
    env = GrowthVectorEnv(1, task)
    env.reset(options={"episode_seeds": evaluation_seeds(1, seed=0, purpose="test")})
    policy = RandomPolicy()
    policy.reset(1, 0)
    for _ in range(3):
        env.step(policy.act(env._observe()))
    share = Share(partial(make_engine, env.task), 1)
    size = {"weights": sum(p.numel() * p.element_size() for p in make_policy("tamiyo").bundle.network.parameters())}
    for name, thing in {
        "decision": env._rows[0].actions[-1],
        "report": env.reports[0],
        "episode": env.episodes[0],
        "share": share,
    }.items():
        size[name] = len(pickle.dumps(thing, protocol=5))
    return size


def measure_update() -> float:
    """Seconds of an update for one decision of one host."""
    env = GrowthVectorEnv(8, "wine")
    horizon = env.task.horizon
    config = TrainConfig(
        updates=2, num_steps=horizon, ppo=PPO_FOR_GROWTH, network=NetworkOptions(), normalize_rewards=False
    )
    row = simic.train([env], config=config).metrics[-1]
    return row["seconds/update"] / (8 * horizon)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits")
    parser.add_argument("--hosts", type=int, default=4, help="hosts of each actor")
    parser.add_argument("--decisions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    sizes = measure_bytes(options.task)
    print("bytes:", sizes)
    learner = line([8, 64], measure_learner(options.task, [8, 64], 15))
    update = measure_update()
    RayWorkers(2)  # a cluster of two
    workers = {count: RayWorkers(count) for count in (1, 2)}
    envs = {n: GrowthVectorEnv(n * options.hosts, options.task) for n in (1, 2)}
    for n, env in envs.items():
        env.engine = ParallelEngine(partial(Timed, env.task), env.num_envs, workers[n], env.task.slots)
    took: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.turns):  # in turns, so that what else the machine does meets both alike
        for n in (1, 2):
            took[n] += decide(envs[n], options.decisions, RandomPolicy())
    engine = workers[1].call(envs[1].engine._number, "seconds", {0: None})[0]
    calls, busy = [], time.process_time()
    for _ in range(200):
        start = time.perf_counter()
        workers[1]._ray.get(_ACTORS[0].answer.remote(-1, "drop", None))
        calls.append(time.perf_counter() - start)
    call = (time.process_time() - busy) / 200
    pieces = Pieces(
        engine=float(np.exp(np.mean(np.log(engine)))),
        jitter=float(np.std(np.log(engine))),
        learner_fixed=learner[0],
        learner_host=learner[1],
        call=call,
        round_trip=float(np.median(calls)),
        update_sample=update,
    )
    print(pieces)
    collecting = Pieces(**{**asdict(pieces), "update_sample": 0.0, "learner_fixed": 0.0, "learner_host": 0.0})
    check = {}
    for n in (1, 2):  # steps of the environment alone, as they were measured
        check[n] = {
            "measured": float(np.mean(took[n])),
            "simulated": float(simulate(collecting, n, options.hosts, 400, 0.0)),
        }
        print(f"{n} actors of {options.hosts} hosts, s per decision:", check[n])
    table = []
    for delay in (0.0, 0.001, 0.01, 0.1):
        for n in (1, 2, 10, 30, 100, 300, 1000):
            seconds = simulate(pieces, n, options.hosts, 24, delay)
            table.append({"delay": delay, "workers": n, "seconds": seconds, "hosts_per_s": n * options.hosts / seconds})
            print(f"delay {delay:5.3f} s, {n:4} workers: {seconds:8.3f} s, {table[-1]['hosts_per_s']:8.1f} decisions/s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"bytes": sizes, "pieces": asdict(pieces), "check": check, "simulated": table, "options": vars(options)}
        options.out.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
