"""What slots cost: dormant ones in a training step, and a fossilised seed against the same network by hand.

    python benchmarks/growth_overhead.py

Variants are timed in turn, step by step, and compared by their medians, so that other load on the machine hits all.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import esper
from esper.actions import BLUEPRINT_NAMES, Decision
from esper.growth.blueprints import build_blueprint
from esper.lifecycle import Op


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


def compare(first: Callable[[], None], second: Callable[[], None], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the paired ratios second / first."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 5):
        for index in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            (first, second)[index]()
            if turn >= 5:
                times[index].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return median(times[0]), median(times[1]), median(ratios)


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    x, y = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))

    plain, slotted = SlotHost(), SlotHost()
    optimizers = [torch.optim.Adam(m.parameters()) for m in (plain, slotted)]
    esper.Growth(slotted, optimizers[1], slots=["sums.*"], example_input=x[:2], policy="wait").step(lambda: (1.0, 0.5))
    slow = [training_step(m, o, x, y) for m, o in zip((plain, slotted), optimizers, strict=True)]
    report("three dormant slots", "the host alone", compare(*slow, repeats))

    host = SlotHost()
    optimizer = torch.optim.Adam(host.parameters())
    plan = [
        Decision(Op.GERMINATE, 1, BLUEPRINT_NAMES.index("conv")),
        Decision(Op.ADVANCE, 1),
        Decision(Op.FOSSILIZE, 1),
    ]
    growth = esper.Growth(
        host, optimizer, slots=["sums.*"], example_input=x[:2], policy=lambda r: plan[r.decision], horizon=4
    )
    for _ in range(4):
        training_step(host, optimizer, x, y)()
        growth.step(lambda: (1.0, 0.5))
    by_hand = Host(seed=build_blueprint("conv", growth.network.slots[1].spec))
    hand_step = training_step(by_hand, torch.optim.Adam(by_hand.parameters()), x, y)
    report("one fossilised conv", "by hand", compare(hand_step, training_step(host, optimizer, x, y), repeats))
    grown = copy.deepcopy(growth.grown_model())
    grown_step = training_step(grown, torch.optim.Adam(grown.parameters()), x, y)
    report("grown_model()", "by hand", compare(hand_step, grown_step, repeats))


def report(what: str, than: str, result: tuple[float, float, float]) -> None:
    """One line."""
    before, after, ratio = result
    print(f"{what}: {1e3 * after:.2f} ms a step, {than} {1e3 * before:.2f} ms ({100 * (ratio - 1):+.2f} %)")


if __name__ == "__main__":
    main()
