"""Recurrent PPO side by side with sb3-contrib's, on the same environment, hyper-parameters and sizes.

    python benchmarks/recurrent_ppo.py                  # speed and learning, one and two threads
    python benchmarks/recurrent_ppo.py --threads 1 --processes 2   # two runs of each library at a time
    python benchmarks/recurrent_ppo.py --profile        # where the time goes, the rate of the update, a rollout step
    python benchmarks/recurrent_ppo.py --compile        # whether torch.compile pays in the update

CartPole-v1, 16 environments × 128 steps, 4 epochs, batch 512, one shared LSTM of 128 units; neither side normalises
anything but advantages. Both step the same single environments; a third row is ours with Gymnasium's vectorised
CartPole, which ``esper ppo --env CartPole-v1`` takes. Each row is a process of its own, so that the number of threads
is what it says, and they take turns, update by update, so that other load on the machine hits all alike. Medians over
all updates are compared: of the time on the clock, and of the processor's, which other load disturbs less.
Needs ``pip install "esper-lite[bench]"``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table

from esper.simic import NetworkOptions, PPOConfig, TrainConfig, ppo
from esper.simic.rollout_buffer import RolloutBuffer, Sequences
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.vectorized import Trainer
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.networks.memory import Memory
from esper.tamiyo.policy import LSTMPolicyBundle, PolicyInput

NUM_ENVS, NUM_STEPS, EPOCHS, BATCH, HIDDEN, LAYER = 16, 128, 4, 512, 128, 64
STEPS_PER_UPDATE = NUM_ENVS * NUM_STEPS
WARM_UP = 2
"""Updates that are not timed."""

Row = dict[str, float]
Library = Literal["sb3", "esper", "esper-vector"]


@dataclass
class Options:
    updates: int = 30
    """Updates of each library and seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of both libraries."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of PyTorch threads to compare."""
    processes: int = 1
    """Runs of each library at the same time, as in a study of several seeds; steps/s are those of all of them."""
    output: Path | None = None
    """Where to write the results as JSON."""
    profile: bool = False
    """Show where the time of our update goes, and how far it is from the rate of a matrix product; compare nothing."""
    compile: bool = False
    """Compile our update with ``torch.compile`` and compare it with the update as it is; needs a C++ compiler."""
    only: Library | None = None
    """Run one library in this process, for the first seed, and print a row after each update; the comparison calls
    itself with this."""


class Stopwatch:
    """Seconds of one update, by part: on the clock, and of the processor (``/cpu``)."""

    def __init__(self) -> None:
        self.row: Row = {}
        self.returns: deque[float] = deque(maxlen=20)
        """Of the last episodes."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self.row[name], self.row[f"{name}/cpu"] = time.perf_counter() - clock, time.process_time() - processor

    def hand_over(self) -> None:
        """Print the row of this update, and wait for the next turn."""
        print(json.dumps(self.row | {"return": float(np.mean(self.returns))}), flush=True)
        sys.stdin.readline()


def our_trainer(seed: int, updates: int, *, vectorised: bool = False) -> Trainer:
    """A trainer over the same single environments that sb3 steps, or over the vectorised form of them."""
    single = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
    envs = gym.make_vec("CartPole-v1", NUM_ENVS, **({} if vectorised else single))
    config = TrainConfig(
        seed=seed,
        updates=updates,
        num_steps=NUM_STEPS,
        ppo=PPOConfig(epochs=EPOCHS, minibatches=STEPS_PER_UPDATE // BATCH, learning_rate=3e-4),
        network=NetworkOptions(hidden_dim=HIDDEN, head_dim=LAYER),
        normalize_observations=False,
        normalize_rewards=False,
    )
    trainer = Trainer([envs], config)
    trainer.start(None, environment=None, resume=False)
    return trainer


def run_esper(seed: int, updates: int, *, vectorised: bool = False) -> None:
    trainer, watch = our_trainer(seed, updates, vectorised=vectorised), Stopwatch()
    for _ in range(updates):
        with watch.part("collect"):
            rollouts = trainer.collect()
        with watch.part("update"):
            trainer.update(rollouts)
        watch.returns.extend(episode.reward for episode in trainer.collectors[0].episodes)
        watch.hand_over()


def run_sb3(seed: int, updates: int) -> None:
    from sb3_contrib import RecurrentPPO  # noqa: PLC0415 (optional dependency)
    from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415

    watch = Stopwatch()

    class Timed(RecurrentPPO):
        def collect_rollouts(self, *args, **kwargs):
            with watch.part("collect"):
                return super().collect_rollouts(*args, **kwargs)

        def train(self) -> None:
            with watch.part("update"):
                super().train()
            watch.returns.extend(episode["r"] for episode in list(self.ep_info_buffer)[-20:])
            watch.hand_over()

    sizes = {
        "lstm_hidden_size": HIDDEN,
        "shared_lstm": True,
        "enable_critic_lstm": False,
        "net_arch": {"pi": [LAYER], "vf": [LAYER]},
    }
    model = Timed(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=seed),
        n_steps=NUM_STEPS,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        ent_coef=0.01,
        policy_kwargs=sizes,
        seed=seed,
        device="cpu",
    )
    model.learn(updates * STEPS_PER_UPDATE)


# ---------------------------------------------------------------------- the comparison

LIBRARIES: dict[Library, Callable[[int, int], None]] = {
    "sb3": run_sb3,
    "esper": run_esper,
    "esper-vector": partial(run_esper, vectorised=True),
}


def compare(options: Options) -> None:
    """A table of medians for each number of threads, and a file of them."""
    results = []
    for threads in options.threads:
        turns = [in_turns(seed, threads, options.updates, options.processes) for seed in options.seeds]
        rows = {name: summary([run for turn in turns for run in turn[name]], options.processes) for name in LIBRARIES}
        title = (
            f"{options.processes} process(es), {threads} thread(s) each, seeds {options.seeds}, {options.updates} "
            f"updates, torch {torch.__version__}"
        )
        Console(width=140).print(table_of(rows, title))
        results.append({"threads": threads, **rows})
    if options.output is not None:
        settings = {"updates": options.updates, "seeds": options.seeds, "torch": torch.__version__}
        settings["processes"] = options.processes
        options.output.write_text(json.dumps({**settings, "results": results}, indent=2) + "\n")


def in_turns(seed: int, threads: int, updates: int, processes: int) -> dict[str, list[list[Row]]]:
    """Rows of every run of each library; one library works at a time, in so many processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

    def start(name: Library, number: int) -> subprocess.Popen[str]:
        options = ["--only", name, "--updates", str(updates), "--seeds", str(seed + 1000 * number)]
        return subprocess.Popen(
            [sys.executable, __file__, *options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    children = {name: [start(name, number) for number in range(processes)] for name in LIBRARIES}
    rows: dict[str, list[list[Row]]] = {name: [[] for _ in range(processes)] for name in LIBRARIES}
    for update in range(updates):
        for name, runs in children.items():
            if update:
                for run in runs:
                    print(file=run.stdin, flush=True)
            for run, found in zip(runs, rows[name], strict=True):
                assert run.stdout is not None
                found.append(json.loads(run.stdout.readline()))
    for runs in children.values():
        for run in runs:
            run.communicate("\n")
    return rows


def summary(runs: list[list[Row]], processes: int) -> Row:
    """Medians of the times over the updates of all runs, steps of all processes a second, and the mean last return."""
    timed = [row for run in runs for row in run[WARM_UP:]]
    row = {name: float(np.median([row[name] for row in timed])) for name in timed[0] if name != "return"}
    for kind in ("", "/cpu"):
        row[f"steps_per_second{kind}"] = processes * STEPS_PER_UPDATE / (row[f"collect{kind}"] + row[f"update{kind}"])
    row["return"] = float(np.mean([run[-1]["return"] for run in runs]))
    return row


def table_of(rows: dict[str, Row], title: str) -> Table:
    """All rows, and below each of ours how many times as fast it is."""
    columns = ["collect", "collect/cpu", "update", "update/cpu", "steps_per_second", "steps_per_second/cpu"]
    table = Table("", *[name.replace("_per_second", "/s") for name in columns], "return at the end", title=title)
    for name, row in rows.items():
        cells = [f"{row[c]:,.0f}" if "steps" in c else f"{row[c]:.3f} s" for c in columns]
        table.add_row(name, *cells, f"{row['return']:.0f}")
        if name != "sb3":
            ratios = [row[c] / rows["sb3"][c] if "steps" in c else rows["sb3"][c] / row[c] for c in columns]
            table.add_row("  faster by", *[f"{ratio:.1f}×" for ratio in ratios])
    return table


# ---------------------------------------------------------------------- where the time goes

PARTS: dict[str, tuple[Any, str]] = {
    "collect: draw": (LSTMPolicyBundle, "step"),
    "collect: judge": (LSTMPolicyBundle, "judge"),
    "collect: environments": (SyncVectorEnv, "step"),
    "collect: read observations": (EnvironmentAdapter, "encode"),
    "collect: store": (RolloutBuffer, "add"),
    "both: memory forward": (Memory, "forward"),
    "update: lay out minibatches": (Sequences, "batch"),
    "update: forward, all": (LSTMPolicyBundle, "judge_sequences"),
    "update: backward, all": (torch.Tensor, "backward"),
    "update: clip the gradient": (ppo, "_clip_gradient"),
    "update: Adam": (torch.optim.Adam, "step"),
}
"""What is timed: owner and name of a function."""

PRODUCTS = {
    "[512, 256] by [256, 512]": (BATCH, 256, BATCH),
    "a step of the LSTM, [4, 128] by [128, 512]": (BATCH // NUM_STEPS, HIDDEN, 4 * HIDDEN),
}
"""Matrix products [rows, inner] by [inner, columns] whose rates the update's is compared with."""


def show_profile(options: Options) -> None:
    """Milliseconds of the processor by part, the rate of the matrix products, and the time of one rollout step."""
    trainer = our_trainer(options.seeds[0], options.updates + 3)
    for _ in range(3):
        trainer.update(trainer.collect())
    milliseconds = profile(trainer, options.updates)
    work = update_flops(trainer) / 1e9
    rates = {"over the whole update": work / milliseconds["update"] * 1e3}
    for what, shape in PRODUCTS.items():
        rates[f"this machine, {what}"] = machine_rate(*shape) / 1e9
    steps = 1e3 * np.array(rollout_step_seconds())
    step = {"minimum": float(steps.min()), "median": float(np.median(steps))}
    threads = torch.get_num_threads()
    table = Table(
        "part",
        "",
        title=f"processor time, mean of {options.updates} updates, {threads} thread(s), torch {torch.__version__}",
    )
    for part in sorted(milliseconds):
        table.add_row(part, f"{milliseconds[part]:.1f} ms")
    table.add_section()
    table.add_row("matrix products of one update", f"{work:.1f} GFLOP")
    for what, rate in rates.items():
        table.add_row(f"  {what}", f"{rate:.1f} GFLOP/s")
    table.add_section()
    for name, value in step.items():
        table.add_row(f"rollout step of the default Tamiyo network, B = {NUM_ENVS}, {name}", f"{value:.2f} ms")
    Console(width=140).print(table)
    if options.output is not None:
        settings = {"updates": options.updates, "threads": threads, "torch": torch.__version__}
        results = {"milliseconds": milliseconds, "gflop": work, "gflop_per_second": rates, "rollout_step_ms": step}
        options.output.write_text(json.dumps(settings | results, indent=2) + "\n")


def profile(trainer: Trainer, updates: int) -> Row:
    """Milliseconds of the processor, by part, of one collection and one update."""
    seconds: dict[str, float] = defaultdict(float)
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timed(getattr(owner, name), part, seconds))
    collect, update = timed(trainer.collect, "collect", seconds), timed(trainer.update, "update", seconds)
    for _ in range(updates):
        update(collect())
    return {part: 1e3 * total / updates for part, total in seconds.items()}


def timed(function: Callable[..., Any], part: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """``function``, which adds the processor's time to ``seconds``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.process_time() - began

    return call


def update_flops(trainer: Trainer) -> float:
    """Multiply-adds (two operations each) of the matrix products of one update, forward and backward."""
    network = trainer.policy.network
    weights = sum(p.numel() for p in network.parameters() if p.dim() == 2)
    return 6.0 * weights * STEPS_PER_UPDATE * EPOCHS


def machine_rate(rows: int, inner: int, columns: int) -> float:
    """Best rate of the product [rows, inner] by [inner, columns], in operations a second."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    best = float("inf")
    for _ in range(200):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
    return 2.0 * rows * inner * columns / best


def rollout_step_seconds(repeats: int = 1000) -> list[float]:
    """Of the processor, for each step of the default Tamiyo network: observations and masks to actions and values."""
    policy = LSTMPolicyBundle(FactoredRecurrentActorCritic())
    sizes = policy.network.sizes()
    masks: dict[str, torch.Tensor | None] = {}
    for head in policy.heads:
        conditional = (sizes[head.parent],) if head.parent else ()
        masks[head.name] = torch.ones(NUM_ENVS, *conditional, sizes[head.name], dtype=torch.bool)
    blueprints = torch.randint(-1, policy.network.config.num_blueprints, (NUM_ENVS, policy.network.config.num_slots))
    inputs = PolicyInput(torch.randn(NUM_ENVS, policy.network.config.state_dim), blueprints, masks)
    hidden, times = policy.initial_hidden(NUM_ENVS), []
    for _ in range(repeats):
        began = time.process_time()
        hidden = policy.act(inputs, hidden).hidden
        times.append(time.process_time() - began)
    return times[repeats // 10 :]


# ---------------------------------------------------------------------- compiled


def show_compiled(options: Options) -> None:
    """Processor time of updates as they are and compiled, in turns from the same weights, and what compiling costs.

    The memory is left as it is: traced, a loop over its steps would be unrolled. What lies before and behind it is
    compiled for all shapes of minibatches at once. The kernels are made anew, in this process and the compilers it
    starts, whose time counts.
    """
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as kernels:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = kernels
        Memory.forward = torch.compiler.disable(Memory.forward)  # type: ignore[method-assign]
        losses = {"as it is": ppo._terms, "compiled": torch.compile(ppo._terms, dynamic=True)}
        trainers = {name: our_trainer(options.seeds[0], options.updates) for name in losses}
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for update in range(options.updates):
            for name, trainer in trainers.items():
                ppo._terms = losses[name]
                rollouts, began = trainer.collect(), processor_seconds()
                trainer.update(rollouts)
                seconds[name].append(processor_seconds() - began)
            if update == 0:
                apart = farthest(*[trainer.policy.network for trainer in trainers.values()])
    table = Table(
        "", "first update", "median of the others", title=f"update, processor time, torch {torch.__version__}"
    )
    for name, (first, *others) in seconds.items():
        table.add_row(name, f"{first:.2f} s", f"{1e3 * np.median(others[WARM_UP:]):.0f} ms")
    Console(width=140).print(table, f"weights after the first update differ by at most {apart:.0e}")
    if options.output is not None:
        settings = {"torch": torch.__version__, "threads": torch.get_num_threads(), "farthest": apart}
        options.output.write_text(json.dumps(settings | {"seconds": seconds}, indent=2) + "\n")


def processor_seconds() -> float:
    """Of this process and of those it started that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def farthest(first: torch.nn.Module, second: torch.nn.Module) -> float:
    """The greatest difference between two weights."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max((a - b).detach().abs().max().item() for a, b in pairs)


def main(options: Options) -> None:
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.profile:
        show_profile(options)
    elif options.compile:
        show_compiled(options)
    elif options.only:
        warnings.simplefilter("ignore")
        LIBRARIES[options.only](options.seeds[0], options.updates)
    else:
        compare(options)


if __name__ == "__main__":
    main(tyro.cli(Options))
