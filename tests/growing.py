"""Helpers for tests of ``Growth``: small runs on made-up data, one for each kind of host."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import esper
from esper.actions import Decision
from esper.network.grown import GrownModule
from network.hosts import host_case


class Loop:
    """A training loop as a user writes it."""

    def __init__(self, kind: str = "vector", optimizer: Any = torch.optim.Adam, **kwargs: Any) -> None:
        torch.manual_seed(1)
        case = host_case(kind, batch=24)
        self.model, self.x = case.model, case.x
        self.y = torch.randint(0, 3, (24, self.x.shape[1]) if kind == "causal" else (24,))
        self.optimizer = optimizer(self.model.parameters(), lr=1e-2)
        kwargs = {"slots": case.slots, "policy": "wait", "budget": 4000} | kwargs
        self.growth = esper.Growth(self.model, self.optimizer, example_input=self.x[:2], **kwargs)

    def loss(self, net: nn.Module | None = None) -> torch.Tensor:
        output = (self.model if net is None else net)(self.x)
        return nn.functional.cross_entropy(output.flatten(0, -2), self.y.flatten())

    @torch.no_grad()
    def evaluate(self, net: nn.Module | None = None) -> tuple[float, float]:
        self.model.eval()
        loss = self.loss(net)
        return float(loss), float(torch.exp(-loss))

    def train(self, batches: int = 3, net: nn.Module | None = None) -> None:
        self.model.train()
        for _ in range(batches):
            self.optimizer.zero_grad()
            self.loss(net).backward()
            self.optimizer.step()

    def explode_seeds(self) -> None:
        """Train on from seeds whose weights have become huge."""
        self.train(2)
        with torch.no_grad():
            for parameter in self.growth.network.seed_parameters():
                parameter.mul_(1e4).add_(1e3)
        self.train(1)

    def epochs(self, n: int) -> list[Any]:
        steps = []
        for _ in range(n):
            self.train()
            steps.append(self.growth.step(self.evaluate))
        return steps

    def script(self, *decisions: Decision) -> Loop:
        """From now on take these decisions, one a step, then wait."""
        plan = [*decisions, *[Decision()] * 99]
        self.growth.policy = esper.make_policy(lambda run: plan[run.decision])
        self.growth.policy.reset(1, 0)
        return self

    @property
    def stages(self) -> list[str]:
        return [slot.stage.name for slot in self.growth.network.slots]


def grown_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, GrownModule)]
