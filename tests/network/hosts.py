"""Small hosts of every kind, and shorthands for decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.actions import ALPHA_TARGETS, BLUEPRINT_NAMES, CURVES, STYLES, TEMPOS, Decision
from esper.lifecycle import Op
from esper.network.blueprints import BLUEPRINTS, SlotSpec
from esper.network.growing_network import GrowingNetwork
from esper.network.placing import is_of_seed

SPECS = {
    "vector": SlotSpec("vector", 8),
    "sequence": SlotSpec("sequence", 8, (6,)),
    "causal": SlotSpec("sequence", 8, (6,), causal=True),
    "image": SlotSpec("image", 8, (5, 4)),
}

FITTING = [(name, kind) for kind, spec in SPECS.items() for name, b in BLUEPRINTS.items() if b.fits(spec)]
"""Every blueprint with every kind of slot that it fits."""

WAIT = Decision()


def of_host(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Those of a growing model's named parameters, buffers or entries of its state that are the host's own."""
    return {name: value for name, value in named if not is_of_seed(name)}


class PerPosition(nn.Module):
    """Sequences [N, L, 1] → [N, 3], one layer at a time at every position; slots: first, second."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(1, channels), nn.ReLU(inplace=True))
        self.second = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu_(self.second(self.first(x))).mean(1))


class SmallCNN(nn.Module):
    """Images [N, 1, H, W] → [N, 3], with BatchNorm and in-place arithmetic; slots: conv1, block."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.bn(self.conv1(x)))
        out = self.block(h)
        out += h
        return self.head(torch.relu_(out).mean((2, 3)))


class CharLM(nn.Module):
    """Tokens [N, L] → logits [N, L, vocabulary], causal; slots: embed, mix."""

    def __init__(self, vocabulary: int = 11, channels: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, channels)
        self.mix = nn.Linear(2 * channels, channels)
        self.head = nn.Linear(channels, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        past = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return self.head(torch.relu(self.mix(torch.cat([h, past], -1))))


def mlp() -> nn.Sequential:
    """Vectors [N, 4] → [N, 3]; slots: "1", "3"."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )


@dataclass
class HostCase:
    """A host, its slots, and a batch."""

    model: nn.Module
    slots: list[str]
    x: Tensor

    def loss(self) -> Tensor:
        return self.model(self.x).pow(2).mean()


def host_case(kind: str, batch: int = 4) -> HostCase:
    """A host whose slots are of the kind ``"vector"``, ``"sequence"``, ``"causal"`` or ``"image"``; 8 channels."""
    if kind == "vector":
        return HostCase(mlp(), ["1", "3"], torch.randn(batch, 4))
    if kind == "sequence":
        return HostCase(PerPosition(), ["first", "second"], torch.randn(batch, 6, 1))
    if kind == "causal":
        return HostCase(CharLM(), ["embed", "mix"], torch.randint(0, 11, (batch, 6)))
    return HostCase(SmallCNN(), ["conv1", "block"], torch.randn(batch, 1, 5, 4))


def grow(case: HostCase, **kwargs: Any) -> GrowingNetwork:
    return GrowingNetwork(case.model, case.slots, case.x, **kwargs)


def germinate(blueprint: str, slot: int = 0, style: str = "add") -> Decision:
    return Decision(Op.GERMINATE, slot, BLUEPRINT_NAMES.index(blueprint), STYLES.index(style))


def advance(slot: int = 0, tempo: str = "instant", target: float = 1.0, curve: str = "linear") -> Decision:
    return _ramp(Op.ADVANCE, slot, tempo, target, curve)


def retarget(slot: int = 0, tempo: str = "instant", target: float = 1.0, curve: str = "linear") -> Decision:
    return _ramp(Op.SET_ALPHA_TARGET, slot, tempo, target, curve)


def prune(slot: int = 0, tempo: str = "instant", curve: str = "linear") -> Decision:
    return _ramp(Op.PRUNE, slot, tempo, 1.0, curve)


def fossilize(slot: int = 0) -> Decision:
    return Decision(Op.FOSSILIZE, slot)


def _ramp(op: Op, slot: int, tempo: str, target: float, curve: str) -> Decision:
    choices = {"tempo": list(TEMPOS).index(tempo), "curve": CURVES.index(curve)}
    return Decision(op, slot, alpha_target=ALPHA_TARGETS.index(target), **choices)


def wake(seed: nn.Module, scale: float = 0.3) -> None:
    """Give every parameter of a seed random values, so that it is no identity any more."""
    with torch.no_grad():
        for parameter in seed.parameters():
            parameter.normal_(0, scale)


def random_decision(rng: np.random.Generator, masks: dict[str, np.ndarray]) -> Decision:
    """A decision drawn evenly from what the masks allow."""
    op = Op(rng.choice(np.flatnonzero(masks["op"])))
    if op is Op.WAIT:
        return WAIT
    slot = int(rng.choice(np.flatnonzero(masks["slot"][op])))
    blueprint = int(rng.choice(np.flatnonzero(masks["blueprint"][slot]))) if op is Op.GERMINATE else 0
    rest = {h: int(rng.choice(np.flatnonzero(masks[h]))) for h in ("style", "tempo", "curve", "alpha_target")}
    return Decision(op, slot, blueprint, **rest)


def same(a: Any, b: Any) -> bool:
    """Whether two nests of plain values and tensors are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
