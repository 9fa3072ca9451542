"""The growth environment's speed: all hosts in one graph beside a loop over them, and where the time goes.

    python benchmarks/environment.py
    python benchmarks/environment.py --hosts 32 --tasks mnist1d --threads 2
    python benchmarks/environment.py --hosts 32 --tasks mnist1d --processes     # beside two single-thread processes

Both engines play the same episodes under the same seeds, in turn, a few decisions at a time, steered by the random
legal policy; rates are medians over these segments. Tamiyo (untrained, default size) is asked for an action at every
decision so that its cost is known; what it says is not used. Floating-point operations are those of the loop, counted
on one training batch of every host at the end of each segment. ``--clock process`` counts the processor time of this
process instead of the wall time: for one thread on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from esper.env.engine import loop
from esper.env.engine.loop import HostRun, LoopEngine
from esper.env.engine.stacked import StackedEngine
from esper.env.engine.stacking.stack import HostStack
from esper.env.growth_env import GrowthVectorEnv
from esper.files import write_json_atomic
from esper.observation import features_size
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.rules import FixedSchedulePolicy, RandomPolicy
from esper.tasks import TASKS

PARTS = ("training", "validation", "attribution", "books", "observation", "policy")
"""Books are what an engine does besides: applying decisions, snapshots, masks; observation is the rest of ``step``."""


# ------------------------------------------------------------------------------------------------ where time goes


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}


class Stopwatch:
    """Seconds by part; time spent in an inner part does not count for the outer one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside, time belongs to ``name``; an attribution pass is one whoever does the evaluating."""
        self._switch()
        self._open.append("attribution" if "attribution" in self._open else name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def watch(self, owner: Any, method: str, name: Callable[..., str]) -> None:
        """Time a method from now on; ``name`` tells the part from its arguments."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name(*args)):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


def watch_engines(stopwatch: Stopwatch) -> None:
    """Time the parts of both engines."""
    for engine in (LoopEngine, StackedEngine):
        for method in ("reset", "step"):
            stopwatch.watch(engine, method, lambda *_: "books")
    stopwatch.watch(StackedEngine, "_validate", lambda *_: "validation")
    stopwatch.watch(StackedEngine, "_record", lambda *_: "attribution")
    stopwatch.watch(HostStack, "train", lambda *_: "training")
    stopwatch.watch(HostStack, "outputs", lambda _, views, x: "attribution" if views[0].question else "validation")
    stopwatch.watch(HostRun, "_train_interval", lambda *_: "training")
    stopwatch.watch(HostRun, "_evaluate", lambda *_: "validation")
    stopwatch.watch(loop, "contributions", lambda *_: "attribution")


# ------------------------------------------------------------------------------------------------ one contender


class Contender:
    """One engine that plays its episodes, a segment at a time.

    Attributes:
        seconds: Time of each segment.
        parts: Seconds by part, of all segments.
    """

    def __init__(self, task: str, hosts: int, stopwatch: Stopwatch, **engine: Any) -> None:
        self.env = GrowthVectorEnv(hosts, task, **engine)
        self.seconds: list[float] = []
        self.parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._stopwatch = stopwatch
        slots = self.env.num_slots
        network = FactoredRecurrentActorCritic(state_dim=features_size(slots), num_slots=slots)
        self._tamiyo = LearnedPolicy(LSTMPolicyBundle(network), deterministic=False)
        self._random = RandomPolicy()
        for policy in (self._tamiyo, self._random):
            policy.reset(hosts, seed=0)
        self._observation, _ = self.env.reset(seed=0)

    def skip(self, decisions: int) -> None:
        """Decisions that are not timed."""
        for _ in range(decisions):
            self._observation, *_ = self.env.step(self._random.act(self._observation))

    def play(self, decisions: int) -> None:
        """One segment; drawing the random action is not timed."""
        self._stopwatch.seconds.clear()
        elapsed = 0.0
        for _ in range(decisions):
            actions = self._random.act(self._observation)
            began = self._stopwatch.clock()
            with self._stopwatch.part("policy"):
                self._tamiyo.act(self._observation)
            with self._stopwatch.part("observation"):
                self._observation, *_ = self.env.step(actions)
            elapsed += self._stopwatch.clock() - began
        self.seconds.append(elapsed)
        for part, seconds in self._stopwatch.seconds.items():
            self.parts[part] += seconds

    def training_operations(self) -> int:
        """Floating-point operations of one decision's training of all hosts, as the loop does them."""
        engine = self.env.engine
        assert isinstance(engine, LoopEngine)
        return sum(map(_operations, engine.runs.values())) * self.env.task.steps_per_decision


def _operations(run: HostRun) -> int:
    """Of one batch, forwards and backwards."""
    task, splits = run.task, run.task.splits()
    model = run.network.model.train()
    with FlopCounterMode(display=False) as counter:
        task.loss(model(splits.train_x[: task.batch_size]), splits.train_y[: task.batch_size]).backward()
    run.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------ one comparison


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    tasks: tuple[str, ...] = tuple(TASKS)
    hosts: tuple[int, ...] = (1, 8, 32, 128)
    threads: int = 1
    processes: bool = False
    clock: str = "wall"
    segments: int = 8
    decisions: int = 3
    skip: int = 0


@dataclass(frozen=True)
class Row:
    """One engine on one task with K hosts; rates are medians over the segments."""

    task: str
    hosts: int
    engine: str
    steps_per_second: float
    """Decisions of one host."""
    samples_per_second: float
    """Training samples."""
    times_the_loop: float
    """Median ratio of the loop's time to this engine's, segment by segment."""
    gflops: float | None
    """Billions of useful operations a second of training; unknown where training is in other processes."""
    shares: dict[str, float] | None
    """Of the time, by part."""


def compare(task: str, hosts: int, settings: Settings, stopwatch: Stopwatch) -> list[Row]:
    """All engines on one task."""
    engines: dict[str, dict[str, Any]] = {"stacked": {"engine": "stacked"}, "loop": {"engine": "loop"}}
    if settings.processes and hosts > 1:
        engines["stacked, 2 processes"] = {"engine": "stacked", "num_workers": 2}
    contenders = {name: Contender(task, hosts, stopwatch, **arguments) for name, arguments in engines.items()}
    for contender in contenders.values():
        contender.skip(settings.skip)
    operations = 0
    for segment in range(settings.segments):
        turn = list(contenders.values())
        for contender in turn if segment % 2 else turn[::-1]:
            contender.play(settings.decisions)
        operations += contenders["loop"].training_operations() * settings.decisions
    rows = [_row(task, hosts, name, contenders, settings, operations) for name in contenders]
    for contender in contenders.values():
        contender.env.close()
    return rows


def _row(
    task: str, hosts: int, name: str, contenders: dict[str, Contender], settings: Settings, operations: int
) -> Row:
    contender, reference = contenders[name], contenders["loop"]
    steps = hosts * settings.decisions / median(contender.seconds)
    samples = contender.env.task.steps_per_decision * contender.env.task.batch_size
    here = contender.parts["training"] > 0
    total = sum(contender.parts.values())
    return Row(
        task,
        hosts,
        name,
        steps_per_second=steps,
        samples_per_second=steps * samples,
        times_the_loop=median(a / b for a, b in zip(reference.seconds, contender.seconds, strict=True)),
        gflops=operations / contender.parts["training"] / 1e9 if here else None,
        shares={part: seconds / total for part, seconds in contender.parts.items()} if here else None,
    )


# ------------------------------------------------------------------------------------------------ the ceiling


def ceiling(task: str, clock: Callable[[], float]) -> float:
    """How many times faster than the loop an engine could be that did the same arithmetic at the same speed.

    What training hosts in one graph saves is what a step costs however small its batch: the calls, and the optimiser's
    pass over the weights. A step on one sample tells it. Measured on a network that the fixed schedule has grown.
    """
    env = GrowthVectorEnv(1, task, engine="loop")
    policy = FixedSchedulePolicy()
    policy.reset(1, seed=0)
    observation, _ = env.reset(seed=0)
    for _ in range(8):
        observation, *_ = env.step(policy.act(observation))
    run = env.engine.runs[0]  # type: ignore[attr-defined]
    whole, one = _step_seconds(run, env.task.batch_size, clock), _step_seconds(run, 1, clock)
    env.close()
    return whole / (whole - one)


def _step_seconds(run: HostRun, samples: int, clock: Callable[[], float], repeats: int = 60) -> float:
    splits, model = run.task.splits(), run.network.model.train()
    x, y = splits.train_x[:samples], splits.train_y[:samples]
    seconds = []
    for _ in range(repeats):
        began = clock()
        run.optimizer.zero_grad(set_to_none=True)
        run.task.loss(model(x), y).backward()
        run.optimizer.step()
        seconds.append(clock() - began)
    return median(seconds)


# ------------------------------------------------------------------------------------------------ the machine


def machine_gflops(clock: Callable[[], float]) -> dict[str, float]:
    """What this machine reaches in billions of operations a second, forwards, with the same number of threads."""
    a, b = torch.randn(2, 1024, 1024)
    x, w = torch.randn(32, 64 * 40, 16), torch.randn(32, 16, 16)
    images, kernels = torch.randn(64, 32 * 16, 8, 8), torch.randn(32 * 16, 16, 3, 3)
    operations: dict[str, Callable[[], Any]] = {
        "matmul 1024³": lambda: a @ b,
        "32 products [2560, 16] × [16, 16]": lambda: torch.bmm(x, w),
        "grouped conv, 32 × 16 channels, 3×3, 64 images 8×8": lambda: F.conv2d(images, kernels, padding=1, groups=32),
    }
    return {name: _gflops(operation, clock) for name, operation in operations.items()}


@torch.no_grad()
def _gflops(operation: Callable[[], Any], clock: Callable[[], float], repeats: int = 15) -> float:
    with FlopCounterMode(display=False) as counter:
        operation()
    seconds = []
    for _ in range(repeats):
        began = clock()
        operation()
        seconds.append(clock() - began)
    return counter.get_total_flops() / median(seconds) / 1e9


def hardware() -> str:
    """Kind of machine, without its name."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} core(s) used, PyTorch {torch.__version__}"


# ------------------------------------------------------------------------------------------------ the report


def report(
    rows: Sequence[Row], ceilings: dict[str, float], machine: dict[str, float], settings: Settings, date: str
) -> str:
    """The result as a page."""
    lines = [
        f"# The environment, {date}",
        "",
        f"{hardware()}, {settings.threads} thread(s), {settings.clock} time; {settings.segments} segments of "
        f"{settings.decisions} decisions, the first after {settings.skip}.",
        "",
        "| task | K | engine | env steps/s | samples/s | × loop | GFLOP/s | " + " | ".join(PARTS) + " |",
        "|---|---|---|---|---|---|---|" + "---|" * len(PARTS),
    ]
    lines += map(_line, rows)
    lines += ["", "Times the loop at most, if all costs that do not grow with the batch were saved and nothing else: "]
    lines[-1] += ", ".join(f"{task} {times:.1f}" for task, times in ceilings.items()) + "."
    lines += ["", "The same machine, in GFLOP/s: " + "; ".join(f"{k}: {v:.1f}" for k, v in machine.items()) + "."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    shares = ["–"] * len(PARTS) if row.shares is None else [f"{100 * row.shares[part]:.0f} %" for part in PARTS]
    rates = [f"{row.steps_per_second:,.1f}", f"{row.samples_per_second:,.0f}", f"{row.times_the_loop:.2f}"]
    gflops = "–" if row.gflops is None else f"{row.gflops:.1f}"
    return "| " + " | ".join([row.task, str(row.hosts), row.engine, *rates, gflops, *shares]) + " |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=Settings.tasks)
    parser.add_argument("--hosts", nargs="+", type=int, default=Settings.hosts, help="numbers of hosts K")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=Settings.threads)
    parser.add_argument("--processes", action="store_true", help="also two processes of one thread each")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default=Settings.clock)
    parser.add_argument("--segments", type=int, default=Settings.segments)
    parser.add_argument("--decisions", type=int, default=Settings.decisions, help="in a segment")
    parser.add_argument("--skip", type=int, default=Settings.skip, help="decisions before the first segment")
    parser.add_argument("--output", type=Path, help="folder for a dated page and JSON file")
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    settings = Settings(**arguments)
    torch.set_num_threads(settings.threads)
    if settings.clock == "process" and (settings.processes or settings.threads > 1):
        parser.error("--clock process is for one thread in one process; leave it out")
    stopwatch = Stopwatch(CLOCKS[settings.clock])
    machine = machine_gflops(stopwatch.clock)
    ceilings = {task: ceiling(task, stopwatch.clock) for task in settings.tasks}
    watch_engines(stopwatch)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = {"date": date, "hardware": hardware(), "settings": asdict(settings)}
    result |= {"machine_gflops": machine, "ceilings": ceilings}
    rows: list[Row] = []
    page = ""
    for task, hosts in itertools.product(settings.tasks, settings.hosts):
        rows += compare(task, hosts, settings, stopwatch)
        page = report(rows, ceilings, machine, settings, date)
        if output is not None:  # after each, so that an interrupted run keeps what it has measured
            output.mkdir(parents=True, exist_ok=True)
            stem = f"environment-{date}-{settings.threads}-thread"
            (output / f"{stem}.md").write_text(page, encoding="utf-8")
            write_json_atomic(output / f"{stem}.json", result | {"rows": [asdict(row) for row in rows]})
        print(f"measured {task} with {hosts} hosts", flush=True)
    print(page)


if __name__ == "__main__":
    main()
