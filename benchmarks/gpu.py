"""Esper on a GPU: whether every path that may run there is right, how fast it is beside the CPU, and where time goes.

    python benchmarks/gpu.py --out benchmarks/results          # everything; about eight minutes on one GPU
    python benchmarks/gpu.py --device cpu --only checks        # the same checks where there is none

It needs no network and nothing but Esper's own dependencies. Four parts, each of which can be asked for alone:

- ``checks``: what must hold on the device, one line each. A failure is told at the end, by exit code 1.
- ``speed``: steps a second of the environment over hosts K and their width, and of PPO over environments and the size
  of the network, each beside the CPU with one thread.
- ``profile``: what the device and the processor do in a decision of the environment and in an update of PPO.
- ``compile``: the policy's step and its learning pass as they are, compiled, and as CUDA graphs.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import esper
from esper.actions import HEADS, Decision
from esper.auditions import Auditions
from esper.env.engine.loop import LoopEngine
from esper.env.engine.stacked import StackedEngine
from esper.env.episode import Episode
from esper.env.growth_env import GrowthVectorEnv
from esper.files import write_json_atomic
from esper.lifecycle import Op
from esper.observation import features_size
from esper.simic import NetworkOptions, PPOConfig, TrainConfig, train
from esper.simic.locksmith import register_environments
from esper.simic.training.vectorized import Trainer
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.networks.masked_categorical import MaskedCategorical
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.rules import RandomPolicy
from esper.tasks import Task, get_task

CHECKS: dict[str, Callable[[str], None]] = {}
"""What must hold on a device, in words, and the function that raises if it does not."""


def check(name: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def enter(function: Callable[[str], None]) -> Callable[[str], None]:
        CHECKS[name] = function
        return function

    return enter


def task_on(name: str, device: str, *, horizon: int | None = None, steps: int | None = None) -> Task:
    """A task whose data and hosts live on a device."""
    task = get_task(name)
    splits, build = task.splits().to(device), task.build_host
    task.splits = lambda: splits  # type: ignore[method-assign]
    task.build_host = lambda width=1.0, depth=1: build(width, depth).to(device)  # type: ignore[method-assign]
    task.horizon, task.steps_per_decision = horizon or task.horizon, steps or task.steps_per_decision
    return task


def wait_for(device: str) -> None:
    """Until everything that was asked of the device is done."""
    if device != "cpu":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------ checks: Growth

HOSTS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "vector": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), "1", (16, 6)),
    "image": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 3)),
        "2", (16, 1, 6, 6)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), "1", (16, 6, 4)),
}  # fmt: skip
"""By kind of slot: the host, its slot, the form of its input."""


class Loop:
    """A training loop on a device, on made-up data."""

    def __init__(self, kind: str, device: str, **options: Any) -> None:
        torch.manual_seed(0)
        build, self.slot, shape = HOSTS[kind]
        self.model, self.x = build().to(device), torch.randn(shape).to(device)
        self.y = torch.randint(3, shape[:1]).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        options = {"policy": "wait", "slots": [self.slot], "example_input": self.x[:2]} | options
        self.growth = esper.Growth(self.model, self.optimizer, **options)

    def loss(self) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def epoch(self) -> Any:
        self.model.train()
        for _ in range(3):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        return self.growth.step(self.evaluate)

    def evaluate(self) -> tuple[float, float]:
        self.model.eval()
        loss = float(self.loss())
        return loss, float(np.exp(-loss))

    def script(self, *decisions: Decision) -> Loop:
        plan = [*decisions, *[Decision()] * 99]
        self.growth.policy = esper.make_policy(lambda run: plan[run.decision])
        self.growth.policy.reset(1, 0)
        return self


def germinate(blueprint: int | str, style: str = "add") -> Decision:
    return Decision(Op.GERMINATE, slot=0, blueprint=blueprint, style=style)


LIFE = (Decision(Op.ADVANCE, slot=0, tempo="fast"), Decision(), Decision(), Decision(Op.FOSSILIZE, slot=0))


@check("every blueprint that fits lives from germination to being kept, in every style, and its parameters are here")
def lives(device: str) -> None:
    for kind in HOSTS:
        fitting = Loop(kind, device).growth.network
        for blueprint in fitting.blueprints_for(fitting.slots[0]):
            for style in ("add", "multiply", "gate"):
                loop = Loop(kind, device).script(germinate(blueprint, style), *LIFE)
                steps = [loop.epoch() for _ in range(6)]
                where = {p.device.type for p in loop.model.parameters()}
                assert where == {torch.device(device).type}, f"{blueprint} in {kind}: {where}"
                assert not any(step.rolled_back for step in steps), f"{blueprint} in {kind} diverged"
                assert loop.growth.network.slots[0].stage.name == "FOSSILIZED", f"{blueprint} in {kind}"


@check("a host with a seed in isolation answers, and learns, bit for bit as without it")
def isolation(device: str) -> None:
    for kind in HOSTS:
        alone, grown = Loop(kind, device), Loop(kind, device).script(germinate("norm"))
        for _ in range(4):
            alone.epoch(), grown.epoch()
        mine = grown.model.state_dict()
        for name, tensor in alone.model.state_dict().items():
            assert torch.equal(tensor, mine[name]), f"{kind}: {name}"


@check("a run that grows goes on from its state bit for bit")
def resume(device: str) -> None:
    first = Loop("image", device).script(germinate("conv"), *LIFE)
    for _ in range(3):
        first.epoch()
    saved = copy.deepcopy([first.growth.state_dict(), first.model.state_dict(), first.optimizer.state_dict()])
    second = Loop("image", device).script(germinate("conv"), *LIFE)
    second.growth.load_state_dict(saved[0])
    second.model.load_state_dict(saved[1])
    second.optimizer.load_state_dict(saved[2])
    for _ in range(3):
        assert first.epoch().loss == second.epoch().loss


@check("a number that breaks is rolled back")
def governor(device: str) -> None:
    loop = Loop("vector", device)
    loop.epoch()
    with torch.no_grad():
        loop.model[0].weight[0, 0] = torch.nan
    assert loop.epoch().rolled_back
    assert not loop.epoch().rolled_back


@check("auditions run, and the grown network is plain PyTorch that answers the same on the CPU")
def auditions(device: str) -> None:
    loop = Loop("image", device, policy="audition", auditions=Auditions(), horizon=8)
    for _ in range(8):
        loop.epoch()
    grown = loop.growth.grown_model().eval()
    here, there = grown(loop.x), copy.deepcopy(grown).cpu()(loop.x.cpu())
    assert torch.allclose(here.cpu(), there, atol=1e-4)


@check("Growth under autocast to bfloat16 stays finite, and its seeds keep the parameters' type")
def autocast(device: str) -> None:
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        for kind in HOSTS:
            loop = Loop(kind, device).script(germinate("mlp"), *LIFE)
            assert all(np.isfinite(loop.epoch().loss) for _ in range(5))
            assert {p.dtype for p in loop.model.parameters()} == {torch.float32}


# ------------------------------------------------------------------------------------------------ checks: environment


def random_decision(masks: dict[str, np.ndarray], rng: np.random.Generator) -> Decision:
    choices = {"op": int(rng.choice(np.flatnonzero(masks["op"])))}
    for head in list(HEADS)[1:]:
        mask = masks[head.name]
        mask = mask[choices[head.parent]] if mask.ndim == 2 else mask
        choices[head.name] = int(rng.choice(np.flatnonzero(mask))) if mask.any() else 0
    return Decision(**choices)


@check("the stacked engine means what the loop means, and both mean what they mean on the CPU")
def engines(device: str) -> None:
    for name in ("wine", "mnist1d", "charlm", "digits"):
        runs = [
            make(task_on(name, where, steps=2), 3)
            for make, where in ((LoopEngine, device), (StackedEngine, device), (LoopEngine, "cpu"))
        ]
        episodes = {
            row: Episode(seed=row, horizon=6, rent=0.02, learning_rate=3e-3, label_noise=0.1) for row in range(3)
        }
        rng = np.random.default_rng(0)
        reports = [engine.reset(episodes) for engine in runs]
        for _ in range(6):
            decisions = {row: random_decision(report.masks, rng) for row, report in reports[0].items()}
            reports = [engine.step(decisions) for engine in runs]
            for row in range(3):
                losses = [report[row].reading.val_losses[-1] for report in reports]
                assert np.allclose(losses, losses[0], rtol=2e-2, atol=2e-2), f"{name}, host {row}: {losses}"
                assert len({report[row].reading.added_params for report in reports}) == 1


@check("a NaN in one host changes no bit of the others")
def neighbours(device: str) -> None:
    results = []
    for broken in (False, True):
        env = GrowthVectorEnv(3, task_on("wine", device, steps=2), engine="stacked")
        env.reset(seed=0)
        wait = {head.name: np.zeros(3, dtype=int) for head in HEADS}
        env.step(wait)
        if broken:
            with torch.no_grad():
                next(env.engine.runs[1].network.model.parameters()).view(-1)[0] = torch.nan  # type: ignore[attr-defined]
        observation, rewards, *_ = env.step(wait)
        results.append((observation["features"][[0, 2]], rewards[[0, 2]]))
        assert [report.reading.rolled_back for report in env.reports] == [False, broken, False]
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


# ------------------------------------------------------------------------------------------------ checks: Simic


@check("a masked choice has probability 0 in every precision, and an empty mask is refused")
def masks(device: str) -> None:
    mask = torch.tensor([[True, False, True]], device=device)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        distribution = MaskedCategorical(torch.randn(1, 3, device=device).to(kind), mask)
        assert distribution.probs[0, 1] == 0
        assert torch.isfinite(distribution.entropy()).all()
    with suppress(ValueError):
        MaskedCategorical(torch.randn(1, 3, device=device), mask & False, head="op")
        raise AssertionError("an empty mask was taken")


def trainer_on(device: str, envs: int = 4, hidden: int = 32, steps: int = 16, updates: int = 3) -> Trainer:
    register_environments()
    config = TrainConfig(
        updates=updates, num_steps=steps, device=device, network=NetworkOptions(hidden_dim=hidden, head_dim=hidden),
        ppo=PPOConfig(epochs=2, minibatches=2),
    )  # fmt: skip
    vector = gymnasium.make_vec("esper/Locksmith-v0", envs, vectorization_mode="sync")
    trainer = Trainer([vector], config)
    trainer.start(None, environment="esper/Locksmith-v0", resume=False)
    return trainer


@check("the first ratio of an update is 1 for every head, learning stays finite, and the policy lives here")
def learning(device: str) -> None:
    trainer = trainer_on(device)
    for _ in range(2):
        trainer.update(trainer.collect())
        metrics = trainer.row
        assert metrics is not None
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        errors = [value for name, value in metrics.items() if name.startswith("first_ratio_error")]
        assert errors, metrics
        assert max(errors) < 1e-4, errors
    assert {p.device.type for p in trainer.policy.network.parameters()} == {torch.device(device).type}


@check("a training run goes on from its checkpoint bit for bit")
def checkpoints(device: str) -> None:
    register_environments()
    config = {"num_envs": 4, "num_steps": 16, "device": device, "network": NetworkOptions(hidden_dim=32, head_dim=32)}
    task = lambda: GrowthVectorEnv(2, task_on("wine", "cpu", horizon=4, steps=1), engine="loop")  # noqa: E731
    with tempfile.TemporaryDirectory() as place:
        whole = train(task(), config=TrainConfig(updates=3, **config))
        train(task(), config=TrainConfig(updates=1, **config), run_dir=Path(place) / "run")
        again = train(task(), config=TrainConfig(updates=3, **config), run_dir=Path(place) / "run", resume=True)
        for a, b in zip(whole.policy.network.parameters(), again.policy.network.parameters(), strict=True):
            assert torch.equal(a, b)


@check("a policy that has learned here is read, and answers the same, on the CPU")
def saved(device: str) -> None:
    torch.manual_seed(0)
    network = FactoredRecurrentActorCritic(state_dim=features_size(3), num_slots=3).to(device)
    state, empty = torch.randn(5, features_size(3), device=device), torch.full((5, 3), -1, device=device)
    with tempfile.TemporaryDirectory() as place:
        LSTMPolicyBundle(network).save(place)
        there = LSTMPolicyBundle.load(place).network
    with torch.no_grad():
        ours = network.get_action(state, empty, dict.fromkeys(HEADS.names), deterministic=True)
        theirs = there.get_action(state.cpu(), empty.cpu(), dict.fromkeys(HEADS.names), deterministic=True)
    assert torch.allclose(ours.state_value.cpu(), theirs.state_value, atol=1e-4)


def run_checks(device: str) -> list[dict[str, str]]:
    rows = []
    for name, function in CHECKS.items():
        began = time.perf_counter()
        try:
            function(device)
            verdict = "holds"
        except Exception as error:  # every other check is still made
            verdict = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc()
        rows.append({"check": name, "verdict": verdict})
        print(f"{verdict:6}  {name} ({time.perf_counter() - began:.1f} s)", flush=True)
    return rows


# ------------------------------------------------------------------------------------------------ speed


def rate(step: Callable[[], int], device: str, seconds: float) -> float:
    """Steps per second, the median over calls of ``step``, which says how many it made; the first two do not count."""
    rates, end = [], 0.0
    for turn in range(1000):
        if turn == 2:
            end = time.perf_counter() + seconds
        wait_for(device)
        began = time.perf_counter()
        steps = step()
        wait_for(device)
        rates.append(steps / (time.perf_counter() - began))
        if turn > 3 and time.perf_counter() > end:
            break
    return median(rates[2:])


def environment_step(task: str, device: str, hosts: int, factor: float) -> Callable[[], int]:
    """One decision of every host, which the random legal policy takes."""
    chosen = task_on(task, device)
    narrow = chosen.build_host
    chosen.build_host = lambda width=1.0, depth=1: narrow(factor, depth)  # type: ignore[method-assign]
    env, policy = GrowthVectorEnv(hosts, chosen, engine="stacked"), RandomPolicy()
    observation = [env.reset(seed=0)[0]]
    policy.reset(hosts, 0)

    def step() -> int:
        observation[0] = env.step(policy.act(observation[0]))[0]
        return hosts

    return step


def ppo_step(device: str, envs: int, hidden: int) -> Callable[[], int]:
    """One rollout and one update."""
    trainer = trainer_on(device, envs=envs, hidden=hidden, steps=64, updates=1000)

    def step() -> int:
        trainer.update(trainer.collect())
        return envs * 64

    return step


def measure_speed(device: str, seconds: float) -> list[dict[str, Any]]:
    rows = []
    devices = dict.fromkeys(["cpu", device])
    for task in ("mnist1d", "digits"):
        for hosts, width in ((1, 1.0), (8, 1.0), (32, 1.0), (128, 1.0), (32, 4.0)):
            row = {"what": f"environment, {task}, {hosts} hosts, width {width:g}"}
            rows.append(row | {d: rate(environment_step(task, d, hosts, width), d, seconds) for d in devices})
            print(rows[-1], flush=True)
    for envs, hidden in ((4, 32), (16, 128), (64, 128), (64, 512)):
        row = {"what": f"PPO, Locksmith, {envs} environments, {hidden} units"}
        rows.append(row | {d: rate(ppo_step(d, envs, hidden), d, seconds) for d in devices})
        print(rows[-1], flush=True)
    return rows


# ------------------------------------------------------------------------------------------------ where time goes


def measure_profile(device: str) -> dict[str, Any]:
    """By what is done: seconds on the clock, seconds that the device is busy, and the ops that take longest."""
    found = {}
    steps = {
        "a decision of 32 hosts of mnist1d": environment_step("mnist1d", device, 32, 1.0),
        "a rollout and an update of PPO, 16 environments, 128 units": ppo_step(device, 16, 128),
    }
    for what, step in steps.items():
        step(), step()
        wait_for(device)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
        began = time.perf_counter()
        with profile(activities=activities) as trace:
            step()
            wait_for(device)
        whole = time.perf_counter() - began
        ops = trace.key_averages()
        spent = (lambda op: op.self_device_time_total) if device != "cpu" else (lambda op: op.self_cpu_time_total)
        largest = sorted(ops, key=spent, reverse=True)[:12]
        found[what] = {
            "seconds under the profiler": whole,
            "seconds that the device is busy": sum(map(spent, ops)) / 1e6,
            "calls": sum(op.count for op in ops),
            "largest, microseconds": {op.key[:80]: [round(spent(op)), op.count] for op in largest},
        }
        print(what, {k: v for k, v in found[what].items() if k != "largest, microseconds"}, flush=True)
    return found


# ------------------------------------------------------------------------------------------------ graphs and compiling


def measure_compile(device: str, seconds: float) -> list[dict[str, Any]]:
    """The policy's step and its learning pass: as they are, compiled, and (on a GPU) compiled into CUDA graphs."""
    rows = []
    modes: dict[str, Callable[[Any], Any]] = {"as it is": lambda f: f, "compiled": torch.compile}
    if device != "cpu":
        modes["CUDA graphs"] = lambda f: torch.compile(f, mode="reduce-overhead")
    for batch, hidden in ((16, 128), (64, 512)):
        network = FactoredRecurrentActorCritic(
            state_dim=features_size(3), num_slots=3, hidden_dim=hidden, head_dim=hidden // 2
        ).to(device)
        core = nn.LSTM(hidden, hidden, batch_first=True).to(device)
        state, empty = torch.randn(batch, features_size(3), device=device), torch.full((batch, 3), -1, device=device)
        sequence = torch.randn(batch, 64, hidden, device=device)

        def act(network: Any = network, state: Any = state, empty: Any = empty) -> Any:
            with torch.no_grad():
                return network.get_action(state, empty, dict.fromkeys(HEADS.names), deterministic=True).state_value

        def learn(core: Any = core, sequence: Any = sequence) -> Any:
            core.zero_grad(set_to_none=True)
            loss = core(sequence)[0].square().mean()
            loss.backward()
            return loss

        for what, function in (("a step of the policy", act), ("the LSTM forwards and backwards", learn)):
            row: dict[str, Any] = {"what": f"{what}, batch {batch}, {hidden} units"}
            for mode, prepare in modes.items():
                torch._dynamo.reset()
                try:
                    ready = prepare(function)
                    row[mode] = rate(lambda ready=ready: ready() is None or 1, device, seconds)
                except Exception as error:  # what cannot be compiled is told, and the others are measured
                    row[mode] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            rows.append(row)
            print(row, flush=True)
    return rows


# ------------------------------------------------------------------------------------------------ the report


def machine(device: str) -> str:
    card = torch.cuda.get_device_name() if device != "cpu" else "no GPU"
    return f"{card}; {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--only", choices=["checks", "speed", "profile", "compile"], action="append")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of speed")
    parser.add_argument("--out", type=Path, help="directory for gpu-DATE.json")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU here that PyTorch can use; --device cpu makes the same checks on the CPU")
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], Any]] = {
        "checks": lambda: run_checks(options.device),
        "speed": lambda: measure_speed(options.device, options.seconds),
        "profile": lambda: measure_profile(options.device),
        "compile": lambda: measure_compile(options.device, options.seconds),
    }
    print(machine(options.device), flush=True)
    result: dict[str, Any] = {"machine": machine(options.device), "date": str(datetime.date.today())}
    for part in options.only or parts:
        result[part] = parts[part]()
        if options.out is not None:  # what there is so far, should the time run out
            write_json_atomic(options.out / f"gpu-{result['date']}.json", result)
    sys.exit(any(row["verdict"] != "holds" for row in result.get("checks", [])))


if __name__ == "__main__":
    main()
