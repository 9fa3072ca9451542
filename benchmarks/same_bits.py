"""Whether a change is a refactor: digests of everything that a few short runs compute, bit for bit.

    python benchmarks/same_bits.py > before.txt      # on the commit before
    python benchmarks/same_bits.py > after.txt       # on the commit after, on the same machine
    diff before.txt after.txt                        # a refactor prints nothing

Every command of Esper is run with options that take seconds, and so is a training loop with each of the policies. Of a
run directory every tensor of every file of weights counts, whatever its name, and every number of every JSON file but
those that tell the time. Digests differ between machines and between versions of PyTorch.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import esper
from esper.tasks import get_task

COMMANDS = {
    "train": "train --task digits --num-envs 2 --updates 2 --eval-episodes 1 --num-workers 1 --quiet",
    "train under variants": "train --task wine --num-envs 3 --updates 2 --eval-episodes 1 --num-workers 2 "
    "--paired --waste 0.02 --variants.rent 0.005 0.08 --quiet",
    "grow": "grow --task mnist1d --epochs 4 --policy tamiyo --quiet",
    "compare": "compare --task wine --seeds 2 --random-architectures 2 --rents 0.01 --workers 1 --quiet",
}
PPO = "ppo --env esper/Locksmith-v0 --total-steps 2048 --num-envs 4 --num-steps 64 --episodes 8 --quiet"
POLICIES = ("wait", "random", "fixed", "heuristic", "tamiyo")

CLOCKS = ("seconds", "time", "wall", "per_second", "date")
OPTIONS = ("command.json", "config.json")  # what was asked for, not what came out


def main() -> None:
    """Print one line per file and per policy."""
    for policy in POLICIES:
        print(f"Growth, {policy}: {grown(policy)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, command in COMMANDS.items():
            report(name, [*command.split(), "--out"], Path(folder) / name)
        report("ppo", [*PPO.split(), "--run-dir"], Path(folder) / "ppo")


def grown(policy: str) -> str:
    """Digest of the network that grows in a training loop, and of what was measured on the way."""
    torch.manual_seed(0)
    task = get_task("digits")
    data, model = task.splits(), task.build_host()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    growth = esper.Growth(
        model, optimizer, slots=task.slots, example_input=data.val_x[:2], policy=policy, budget=5_000, horizon=8, seed=3
    )
    steps = []
    for _ in range(8):
        model.train()
        for batch in torch.randperm(len(data.train_x))[:512].split(64):
            optimizer.zero_grad()
            task.loss(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
        step = growth.step(lambda: measured(task, model.eval()(data.val_x), data.val_y))
        steps.append([step.loss, step.score, step.decided, step.added_params, sorted(step.contributions.items())])
    return digest([json.dumps(steps).encode(), *map(to_bytes, growth.grown_model().state_dict().values())])


def measured(task: esper.Task, output: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Loss and score."""
    return float(task.loss(output, target)), float(task.score(output, target))


def report(name: str, arguments: list[str], folder: Path) -> None:
    """Run one command of Esper and print the digest of every file that it wrote."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "esper", *arguments, str(folder)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    for path in sorted(folder.rglob("*")):
        if parts := list(contents(path)):
            print(f"{name}, {path.relative_to(folder)}: {digest(parts)}", flush=True)


def contents(path: Path) -> Iterator[bytes]:
    """What counts of a file; nothing of one that holds neither weights nor numbers."""
    if path.suffix == ".safetensors":
        yield from sorted(map(to_bytes, load_file(path).values()))
    elif path.suffix in (".json", ".jsonl") and path.name not in OPTIONS:
        text = path.read_text(encoding="utf-8")
        documents = text.splitlines() if path.suffix == ".jsonl" else [text]
        yield from (json.dumps(timeless(json.loads(document)), sort_keys=True).encode() for document in documents)


def timeless(value: Any) -> Any:
    """Plain data without the entries that tell the time."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not any(clock in k.lower() for clock in CLOCKS)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def to_bytes(tensor: torch.Tensor) -> bytes:
    """Type, shape and numbers."""
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.detach().contiguous().numpy().tobytes()


def digest(parts: list[bytes]) -> str:
    """Sixteen digits."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
