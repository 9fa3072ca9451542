"""Recurrent PPO on images beside an agent in the manner of CleanRL, on the same environment and hyper-parameters.

    python benchmarks/image_ppo.py                                  # speed and memory
    python benchmarks/image_ppo.py --returns --updates 18 --repetitions 1   # what both come to
    python benchmarks/image_ppo.py --profile esper-nature           # where the processor's time goes

CleanRL has a file per algorithm and is no library to call, so the agent of its ``ppo_atari_lstm`` (Huang et al. 2022,
https://www.jmlr.org/papers/v23/21-1342.html) is implemented here anew, from its description: the convolutions of Mnih
et al. (2015), an LSTM of 128 units, orthogonal weights, a loop over time that empties the memory where an episode
begins, minibatches of whole environments, all observations in one tensor of float32. Ours is measured twice: with the
same convolutions as an encoder of the user's own, and with its own encoder of images. 8 environments × 128 steps, 4
epochs, 4 minibatches, one thread; rewards are left as they are. Each run is a process of its own, one at a time, and
the agents take turns.
"""

from __future__ import annotations

import cProfile
import json
import os
import platform
import pstats
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from esper.simic import NetworkOptions, PPOConfig, TrainConfig
from esper.simic.training.vectorized import Trainer

NUM_ENVS, NUM_STEPS, EPOCHS, MINIBATCHES, HIDDEN = 8, 128, 4, 4, 128
STEPS_PER_UPDATE = NUM_ENVS * NUM_STEPS
LEARNING_RATE, GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE, MAX_NORM = 1e-3, 0.99, 0.95, 0.1, 0.01, 0.5, 0.5
SIDE, CUES, SHORTEST, LONGEST = 84, 2, 3, 8
WARM_UP = 1
"""Updates that are not timed."""

Row = dict[str, float]
Agent = Literal["cleanrl-like", "esper-nature", "esper"]


@dataclass
class Options:
    updates: int = 4
    """Updates of each run."""
    repetitions: int = 3
    """Runs of each agent; their number is the seed."""
    agents: tuple[Agent, ...] = get_args(Agent)
    """Whom to measure."""
    returns: bool = False
    """Show how the return goes up, in place of speed and memory."""
    output: Path | None = None
    """Where to write the results as JSON."""
    profile: Agent | None = None
    """Show where the processor's time of one agent goes, by function; compare nothing."""
    only: Agent | None = None
    """Run one agent in this process and print its rows; the comparison calls itself with this."""
    seed: int = 0
    """With ``only`` and ``profile``."""


class Cue(gym.Env):
    """A bright square stands on the left or the right of the first picture; at the last one its side is asked for.

    Between them are 1 to 6 dark pictures, with a little noise; the last one has bright bars. Whoever then acts with the
    number of the side gets 1; who guesses gets 0.5 on average.
    """

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = spaces.Discrete(CUES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.cue, self.left = int(self.np_random.integers(CUES)), int(self.np_random.integers(SHORTEST, LONGEST + 1))
        picture, left = self.picture(), 8 + 48 * self.cue
        picture[32:52, left : left + 20] = 255
        return picture, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        asked = self.left == 1
        self.left -= 1
        picture = self.picture()
        if self.left == 1:
            picture[:4] = picture[-4:] = 255
        return picture, float(asked and action == self.cue), asked, False, {}

    def picture(self) -> np.ndarray:
        return self.np_random.integers(0, 32, (SIDE, SIDE, 1), np.uint8)


def make_envs() -> SyncVectorEnv:
    return SyncVectorEnv([Cue] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = 2**0.5) -> nn.Linear | nn.Conv2d:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Convolutions(nn.Module):
    """Those of Mnih et al. (2015): images [N, Y, X, C] of 0 to 255 to [N, 512]."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            orthogonal(nn.Conv2d(1, 32, 8, stride=4)),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2)),
            orthogonal(nn.Conv2d(64, 64, 3)),
        ]
        rectified = [part for layer in layers for part in (layer, nn.ReLU())]
        self.layers = nn.Sequential(*rectified, nn.Flatten(), orthogonal(nn.Linear(64 * 7 * 7, 512)), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.movedim(-1, 1) / 255)


# ---------------------------------------------------------------------- an agent in the manner of CleanRL


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Convolutions()
        self.memory = nn.LSTM(512, HIDDEN)
        for name, weight in self.memory.named_parameters():
            nn.init.zeros_(weight) if "bias" in name else nn.init.orthogonal_(weight)
        self.actor, self.critic = orthogonal(nn.Linear(HIDDEN, CUES), 0.01), orthogonal(nn.Linear(HIDDEN, 1), 1.0)

    def forward(self, images: Tensor, state: tuple[Tensor, Tensor], begins: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Logits [T·K, n] and values [T·K] of images [T, K, ...], step by step, and the state after them."""
        encoded, outputs = self.encoder(images.flatten(0, 1)).unflatten(0, begins.shape), []
        for x, first in zip(encoded, begins, strict=True):
            keep = (1.0 - first).view(1, -1, 1)
            output, state = self.memory(x.unsqueeze(0), (keep * state[0], keep * state[1]))
            outputs.append(output)
        remembered = torch.cat(outputs).flatten(0, 1)
        return self.actor(remembered), self.critic(remembered).squeeze(-1), state


class Baseline:
    """Collects and learns like the agent with an LSTM of CleanRL."""

    def __init__(self, seed: int, updates: int) -> None:
        torch.manual_seed(seed)
        self.network, self.envs, self.updates, self.done = Network(), make_envs(), updates, 0
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, eps=1e-5)
        self.generator = np.random.default_rng(seed)
        shape = (NUM_STEPS, NUM_ENVS)
        self.images = torch.zeros(*shape, SIDE, SIDE, 1)
        self.actions = torch.zeros(shape, dtype=torch.int64)
        self.log_probs, self.rewards, self.begins, self.values = (torch.zeros(shape) for _ in range(4))
        self.image = torch.as_tensor(self.envs.reset(seed=seed)[0], dtype=torch.float32)
        self.begin = torch.zeros(NUM_ENVS)
        self.state = (torch.zeros(1, NUM_ENVS, HIDDEN), torch.zeros(1, NUM_ENVS, HIDDEN))
        self.returns: list[float] = []

    @torch.no_grad()
    def collect(self) -> None:
        self.first, self.returns = self.state, []
        for t in range(NUM_STEPS):
            self.images[t], self.begins[t] = self.image, self.begin
            logits, self.values[t], self.state = self.network(self.image[None], self.state, self.begin[None])
            policy = torch.distributions.Categorical(logits=logits)
            self.actions[t] = policy.sample()
            self.log_probs[t] = policy.log_prob(self.actions[t])
            image, reward, terminated, truncated, _ = self.envs.step(self.actions[t].numpy())
            ended = terminated | truncated
            self.rewards[t] = torch.as_tensor(reward)
            self.image = torch.as_tensor(image, dtype=torch.float32)
            self.begin = torch.as_tensor(ended, dtype=torch.float32)
            self.returns += reward[ended].tolist()  # the last reward of an episode is its return
        _, last_value, _ = self.network(self.image[None], self.state, self.begin[None])
        self.advantages, advantage = torch.zeros_like(self.rewards), torch.zeros(NUM_ENVS)
        next_value, goes_on = last_value, 1.0 - self.begin
        for t in reversed(range(NUM_STEPS)):
            delta = self.rewards[t] + GAMMA * next_value * goes_on - self.values[t]
            advantage = self.advantages[t] = delta + GAMMA * GAE_LAMBDA * goes_on * advantage
            next_value, goes_on = self.values[t], 1.0 - self.begins[t]

    def update(self) -> None:
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - self.done / self.updates)
        self.done += 1
        for _ in range(EPOCHS):
            order = torch.as_tensor(self.generator.permutation(NUM_ENVS))
            for chosen in order.chunk(MINIBATCHES):
                loss = self.loss(chosen)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)
                self.optimizer.step()

    def loss(self, chosen: Tensor) -> Tensor:
        """Of the environments ``chosen``."""
        stored = (self.actions, self.log_probs, self.values, self.advantages)
        actions, log_probs, values, advantages = (x[:, chosen].flatten() for x in stored)
        state = (self.first[0][:, chosen], self.first[1][:, chosen])
        logits, new_values, _ = self.network(self.images[:, chosen], state, self.begins[:, chosen])
        policy, returns = torch.distributions.Categorical(logits=logits), advantages + values
        ratio = (policy.log_prob(actions) - log_probs).exp()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
        near = values + (new_values - values).clamp(-CLIP, CLIP)
        error = torch.maximum(F.mse_loss(new_values, returns, reduction="none"), (near - returns).square()).mean()
        return -surrogate + VALUE * 0.5 * error - ENTROPY * policy.entropy().mean()


class Ours:
    """The same of Esper."""

    def __init__(self, seed: int, updates: int, *, nature: bool) -> None:
        torch.manual_seed(seed)
        config = TrainConfig(
            seed=seed,
            updates=updates,
            num_steps=NUM_STEPS,
            ppo=PPOConfig(
                learning_rate=f"linear:{LEARNING_RATE}",
                gamma=GAMMA,
                gae_lambda=GAE_LAMBDA,
                clip=CLIP,
                clip_range_vf=CLIP,
                epochs=EPOCHS,
                minibatches=MINIBATCHES,
                entropy_coefficient=ENTROPY,
                value_coefficient=VALUE,
                max_grad_norm=MAX_NORM,
            ),
            network=NetworkOptions(hidden_dim=HIDDEN),
            normalize_rewards=False,
        )
        encoders = {"observation": Convolutions()} if nature else None
        self.trainer = Trainer([make_envs()], config, encoders=encoders)
        self.trainer.start(None, environment=None, resume=False)

    def collect(self) -> None:
        self.collected = self.trainer.collect()

    def update(self) -> None:
        self.trainer.update(self.collected)

    @property
    def returns(self) -> list[float]:
        return [episode.reward for episode in self.collected.episodes]


def make_agent(name: Agent, seed: int, updates: int) -> Baseline | Ours:
    return Baseline(seed, updates) if name == "cleanrl-like" else Ours(seed, updates, nature=name == "esper-nature")


# ---------------------------------------------------------------------- measuring


def run(name: Agent, seed: int, updates: int) -> Iterator[Row]:
    """A row for each update: seconds on the clock and of the processor (``/cpu``), megabytes, the last returns."""
    before, returns = peak_megabytes(), deque[float](maxlen=100)
    agent = make_agent(name, seed, updates)
    for _ in range(updates):
        row = {}
        for part, work in (("collect", agent.collect), ("update", agent.update)):
            clock, processor = time.perf_counter(), time.process_time()
            work()
            row[part], row[f"{part}/cpu"] = time.perf_counter() - clock, time.process_time() - processor
        returns.extend(agent.returns)
        peak = peak_megabytes()
        yield {**row, "megabytes": peak, "megabytes/own": peak - before, "return": float(np.mean(returns))}


def peak_megabytes() -> float:
    """The most memory that this process has held at once, as Linux counts it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def measured(name: Agent, seed: int, updates: int) -> list[Row]:
    """The rows of a run in a process of its own, with one thread."""
    command = [sys.executable, __file__, "--only", name, "--seed", str(seed), "--updates", str(updates)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(options: Options) -> None:
    """All agents in turns; a table, and a file."""
    loads = [os.getloadavg()[0]]
    runs: dict[str, list[list[Row]]] = {name: [] for name in options.agents}
    for seed in range(options.repetitions):
        for name in options.agents:
            runs[name].append(measured(name, seed, options.updates))
            loads.append(os.getloadavg()[0])
    rows = {name: summary(of_agent) for name, of_agent in runs.items()}
    load = f"load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    title = f"{options.repetitions} × {options.updates} updates, torch {torch.__version__}, {load}"
    Console(width=140).print(table_of_returns(runs, title) if options.returns else table_of(rows, title))
    if options.output is not None:
        settings = {"updates": options.updates, "repetitions": options.repetitions, "torch": torch.__version__}
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "loads": loads}
        results = {"medians": rows, "runs": runs}
        options.output.write_text(json.dumps({**settings, **machine, **results}, indent=1) + "\n", encoding="utf-8")


def summary(runs: list[list[Row]]) -> Row:
    """Medians over the runs: of the median time of their updates, and of their peak of memory."""
    timed = [{name: float(np.median([row[name] for row in run[WARM_UP:]])) for name in run[0]} for run in runs]
    row = {name: float(np.median([of_run[name] for of_run in timed])) for name in timed[0] if name != "return"}
    for name in ("megabytes", "megabytes/own"):
        row[name] = float(np.median([run[-1][name] for run in runs]))
    for kind in ("", "/cpu"):
        row[f"steps_per_second{kind}"] = STEPS_PER_UPDATE / (row[f"collect{kind}"] + row[f"update{kind}"])
    return row


def table_of(rows: dict[str, Row], title: str) -> Table:
    columns = ["collect/cpu", "update/cpu", "steps_per_second/cpu", "steps_per_second", "megabytes", "megabytes/own"]
    table = Table("", *[name.replace("_per_second", "/s") for name in columns], title=title)
    for name, row in rows.items():
        cells = [f"{row[c]:.2f} s" if c in ("collect/cpu", "update/cpu") else f"{row[c]:,.0f}" for c in columns]
        table.add_row(name, *cells)
    return table


def table_of_returns(runs: dict[str, list[list[Row]]], title: str) -> Table:
    """The mean of the last 100 episodes, over the runs, at six points of the training."""
    updates = len(next(iter(runs.values()))[0])
    points = sorted({max(1, updates * i // 6) for i in range(1, 7)})
    table = Table("return after steps", *[f"{point * STEPS_PER_UPDATE:,}" for point in points], title=title)
    for name, of_agent in runs.items():
        table.add_row(name, *[f"{np.mean([run[point - 1]['return'] for run in of_agent]):.2f}" for point in points])
    return table


def show_profile(name: Agent, seed: int, updates: int) -> None:
    agent, profiler = make_agent(name, seed, updates + WARM_UP), cProfile.Profile(time.process_time)
    for update in range(updates + WARM_UP):
        if update == WARM_UP:
            profiler.enable()
        agent.collect()
        agent.update()
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main(options: Options) -> None:
    if options.only:
        for row in run(options.only, options.seed, options.updates):
            print(json.dumps(row), flush=True)
    elif options.profile:
        show_profile(options.profile, options.seed, options.updates)
    else:
        compare(options)


if __name__ == "__main__":
    main(tyro.cli(Options))
