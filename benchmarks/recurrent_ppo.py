"""Recurrent PPO side by side with sb3-contrib's, on the same environment, hyper-parameters and sizes.

    python benchmarks/recurrent_ppo.py                  # speed and learning, one and two threads
    python benchmarks/recurrent_ppo.py --profile        # where the time of our update goes

CartPole-v1, 16 environments × 128 steps, 4 epochs, batch 512, one shared LSTM of 128 units. Both step the same single
environments in the same process. Every row is a process of its own, so that the number of threads is what it says.
Needs ``pip install "esper-lite[bench]"``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from esper.simic import NetworkConfig, PPOConfig, TrainConfig
from esper.simic.training.vectorized import Trainer

NUM_ENVS, NUM_STEPS, EPOCHS, BATCH, HIDDEN, LAYER = 16, 128, 4, 512, 128, 64
STEPS_PER_UPDATE = NUM_ENVS * NUM_STEPS


@dataclass
class Options:
    updates: int = 30
    """Updates of each library."""
    seed: int = 0
    """Of both libraries."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of PyTorch threads to compare."""
    profile: bool = False
    """Show where the time of our update goes, instead of comparing."""
    only: Literal["esper", "sb3"] | None = None
    """Run one library in this process and print its row as JSON; the comparison calls itself with this."""


def our_trainer(seed: int, updates: int) -> Trainer:
    """A trainer over the same single environments that sb3 steps."""
    envs = gym.make_vec(
        "CartPole-v1", NUM_ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )
    config = TrainConfig(
        seed=seed,
        updates=updates,
        num_steps=NUM_STEPS,
        ppo=PPOConfig(epochs=EPOCHS, minibatches=STEPS_PER_UPDATE // BATCH, anneal_learning_rate=False),
        network=NetworkConfig(hidden_dim=HIDDEN, head_dim=LAYER),
    )
    trainer = Trainer([envs], config)
    trainer.start(None, environment=None, resume=False)
    return trainer


def run_esper(options: Options) -> dict[str, float]:
    trainer = our_trainer(options.seed, options.updates)
    rows = [trainer.update(trainer.collect()) for _ in range(options.updates)]
    return summary(
        [r["collect_seconds"] for r in rows], [r["update_seconds"] for r in rows], [r["return"] for r in rows]
    )


def run_sb3(options: Options) -> dict[str, float]:
    from sb3_contrib import RecurrentPPO  # noqa: PLC0415 (optional dependency)
    from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415

    collect, update, returns = [], [], []

    class Timed(RecurrentPPO):
        def collect_rollouts(self, *args, **kwargs):
            began = time.perf_counter()
            result = super().collect_rollouts(*args, **kwargs)
            collect.append(time.perf_counter() - began)
            return result

        def train(self) -> None:
            began = time.perf_counter()
            super().train()
            update.append(time.perf_counter() - began)
            returns.append(np.mean([episode["r"] for episode in list(self.ep_info_buffer)[-20:]]))

    sizes = {
        "lstm_hidden_size": HIDDEN,
        "shared_lstm": True,
        "enable_critic_lstm": False,
        "net_arch": {"pi": [LAYER], "vf": [LAYER]},
    }
    model = Timed(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=options.seed),
        n_steps=NUM_STEPS,
        batch_size=BATCH,
        n_epochs=EPOCHS,
        ent_coef=0.01,
        policy_kwargs=sizes,
        seed=options.seed,
        device="cpu",
    )
    model.learn(options.updates * STEPS_PER_UPDATE)
    return summary(collect, update, returns)


def summary(collect: list[float], update: list[float], returns: list[float]) -> dict[str, float]:
    """Medians over the updates, the first two left out, for they warm up."""
    collecting, updating = np.median(collect[2:]), np.median(update[2:])
    return {
        "collect": float(collecting),
        "update": float(updating),
        "steps_per_second": STEPS_PER_UPDATE / float(collecting + updating),
        "whole_run": float(np.sum(collect) + np.sum(update)),
        "return": float(np.nanmean(returns[-5:])),
    }


def compare(options: Options) -> None:
    """One process a row; a table of all."""
    table = Table(
        *["library", "threads", "collect 2048 steps", "update 2048 × 4", "steps/s", "whole run", "return at its end"],
        title=f"CartPole-v1, {options.updates} updates, seed {options.seed}, torch {torch.__version__}",
    )
    for threads in options.threads:
        rows = {name: in_a_process(name, threads, options) for name in ("sb3", "esper")}
        for name, row in rows.items():
            table.add_row(
                {"sb3": "sb3-contrib RecurrentPPO", "esper": "esper.simic"}[name],
                str(threads),
                f"{row['collect']:.3f} s",
                f"{row['update']:.3f} s",
                f"{row['steps_per_second']:,.0f}",
                f"{row['whole_run']:.1f} s",
                f"{row['return']:.0f}",
            )
        ratio = {key: rows["sb3"][key] / rows["esper"][key] for key in ("collect", "update", "whole_run")}
        faster = rows["esper"]["steps_per_second"] / rows["sb3"]["steps_per_second"]
        times = [f"{ratio['collect']:.1f}×", f"{ratio['update']:.1f}×", f"{faster:.1f}×", f"{ratio['whole_run']:.1f}×"]
        table.add_row("[bold]faster by", "", *times, "", end_section=True)
    Console(width=140).print(table)


def in_a_process(name: str, threads: int, options: Options) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--updates", str(options.updates), "--seed", str(options.seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------- where the time goes

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::mkldnn_rnn_layer", "aten::mkldnn_rnn_layer_backward")


def show_profile(options: Options) -> None:
    """Operators of one update by their time, the share of matrix products, and the rate they run at."""
    trainer = our_trainer(options.seed, options.updates)
    for _ in range(options.updates):
        trainer.update(trainer.collect())
    seconds = []
    for _ in range(3):
        rollouts = trainer.collect()
        seconds.append(trainer.update(rollouts)["update_seconds"])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.update(trainer.collect())
    console = Console(width=140)
    console.print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15), highlight=False)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in MATRIX_PRODUCTS)
    flops = update_flops(trainer)
    console.print(
        f"update {min(seconds):.3f} s; matrix products (LSTM layers included) {products / total:.0%} of operator time"
    )
    console.print(
        f"matrix products of one update: {flops / 1e9:.1f} GFLOP, so {flops / min(seconds) / 1e9:.0f} GFLOP/s over the "
        f"whole update; this machine multiplies [512, 256] by [256, 512] at {machine_rate() / 1e9:.0f} GFLOP/s"
    )


def update_flops(trainer: Trainer) -> float:
    """Multiply-adds (two operations each) of the matrix products of one update, forward and backward."""
    network = trainer.policy.network
    weights = sum(p.numel() for p in network.parameters() if p.dim() == 2)
    return 6.0 * weights * STEPS_PER_UPDATE * EPOCHS


def machine_rate() -> float:
    """Best rate of a matrix product of the update's size, in operations a second."""
    a, b = torch.randn(512, 256), torch.randn(256, 512)
    best = float("inf")
    for _ in range(200):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2.0 * 512 * 256 * 512 / best


def main(options: Options) -> None:
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.profile:
        show_profile(options)
    elif options.only:
        warnings.simplefilter("ignore")
        print(json.dumps({"esper": run_esper, "sb3": run_sb3}[options.only](options)))
    else:
        compare(options)


if __name__ == "__main__":
    main(tyro.cli(Options))
