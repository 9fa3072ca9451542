"""What slots cost: dormant ones in a training step, and a fossilised seed against the same network by hand.

    python benchmarks/growth_overhead.py

Variants are timed in turn, step by step, by the processor's time, and compared pair by pair, so that other load on the
machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import esper
from esper.actions import BLUEPRINT_NAMES, Decision
from esper.lifecycle import Op, Stage
from esper.network.blueprints import build_blueprint

WARM_UP = 5
"""Steps that are not timed."""


class Host(nn.Module):
    """A small CNN with three blocks."""

    def __init__(self, channels: int = 32, seed: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in "123"
        )
        self.by_hand = seed
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 10]."""
        h = self.stem(x)
        for index, block in enumerate(self.blocks):
            h = h + block(h)
            if index == 1 and self.by_hand is not None:
                h = h + self.by_hand(h)
        return self.head(h.mean((2, 3)))


class SlotHost(Host):
    """The same, with the residual sums as named modules, where slots can be."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__(channels)
        self.sums = nn.ModuleList(nn.Identity() for _ in "123")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, 10]."""
        h = self.stem(x)
        for block, total in zip(self.blocks, self.sums, strict=True):
            h = total(h + block(h))
        return self.head(h.mean((2, 3)))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of training, as a function."""

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


@dataclass
class Comparison:
    """One way of doing a training step against another; times in milliseconds of processor time."""

    what: str
    than: str
    what_ms: float
    than_ms: float
    overhead_percent: float
    """Median over paired steps."""
    interval_percent: tuple[float, float]
    """95 % interval of that median, from its order statistics."""

    def __str__(self) -> str:
        low, high = self.interval_percent
        return (
            f"{self.what}: {self.what_ms:.2f} ms a step, {self.than} {self.than_ms:.2f} ms "
            f"({self.overhead_percent:+.2f} % [{low:+.2f}, {high:+.2f}])"
        )


def compare(what: str, second: Callable[[], None], than: str, first: Callable[[], None], repeats: int) -> Comparison:
    """Time ``second`` against ``first``, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + WARM_UP):
        for index in (0, 1) if turn % 2 else (1, 0):
            began = time.process_time()
            (first, second)[index]()
            if turn >= WARM_UP:
                times[index].append(1e3 * (time.process_time() - began))
    overheads = sorted(100 * (b / a - 1) for a, b in zip(*times, strict=True))
    half = 0.98 * repeats**0.5
    low, high = (overheads[min(max(round(repeats / 2 + side), 0), repeats - 1)] for side in (-half, half))
    return Comparison(what, than, median(times[1]), median(times[0]), median(overheads), (low, high))


def dormant_slots(x: Tensor, y: Tensor, repeats: int) -> Comparison:
    """Three slots that are never used, against a host that knows nothing of Esper."""
    plain, slotted = SlotHost(), SlotHost()
    optimizers = [torch.optim.Adam(m.parameters()) for m in (plain, slotted)]
    esper.Growth(slotted, optimizers[1], slots=["sums.*"], example_input=x[:2], policy="wait").step(lambda: (1.0, 0.5))
    alone, dormant = (training_step(m, o, x, y) for m, o in zip((plain, slotted), optimizers, strict=True))
    return compare("three dormant slots", dormant, "the host alone", alone, repeats)


def fossilised_seed(x: Tensor, y: Tensor, repeats: int) -> list[Comparison]:
    """A convolution that has grown and been kept, against the same network written by hand."""
    host = SlotHost()
    optimizer = torch.optim.Adam(host.parameters())
    plan = [
        Decision(Op.GERMINATE, 1, BLUEPRINT_NAMES.index("conv")),
        Decision(Op.ADVANCE, 1),
        Decision(Op.FOSSILIZE, 1),
    ]
    growth = esper.Growth(
        host, optimizer, slots=["sums.*"], example_input=x[:2], policy=lambda run: plan[run.decision], horizon=4
    )
    for _ in range(4):
        training_step(host, optimizer, x, y)()
        growth.step(lambda: (1.0, 0.5))
    assert growth.network.slots[1].stage is Stage.FOSSILIZED
    by_hand = Host(seed=build_blueprint("conv", growth.network.slots[1].spec))
    hand_step = training_step(by_hand, torch.optim.Adam(by_hand.parameters()), x, y)
    grown = growth.grown_model()
    grown_step = training_step(grown, torch.optim.Adam(grown.parameters()), x, y)
    return [
        compare("one fossilised conv", training_step(host, optimizer, x, y), "by hand", hand_step, repeats),
        compare("grown_model()", grown_step, "by hand", hand_step, repeats),
    ]


def main() -> None:
    """Print the comparisons, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200, help="steps of each variant")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
    comparisons = [dormant_slots(x, y, options.repeats), *fossilised_seed(x, y, options.repeats)]
    for comparison in comparisons:
        print(comparison)
    if options.output is not None:
        results = {
            "date": date.today().isoformat(),
            "hardware": f"{platform.machine()}, 1 thread, PyTorch {torch.__version__}",
            "settings": {"repeats": options.repeats, "batch": list(x.shape), "clock": "process"},
            "results": [asdict(c) for c in comparisons],
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
