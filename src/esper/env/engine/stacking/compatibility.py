"""Whether a task's hosts can be stacked: two of them are, and must answer as they do alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from esper.env.engine.run import build_episode_host
from esper.env.engine.stacking.stacked_tensor import NoRuleError, Stacked, stacked
from esper.env.engine.stacking.template import Template
from esper.env.episode import Episode
from esper.tasks import Task

TOLERANCE = 1e-3
"""Largest difference of two outputs, relative to the largest output."""


def check_stackable(task: Task) -> None:
    """Raise unless the hosts of a task can be stacked.

    Raises:
        NoRuleError: If they cannot, with the reason.
    """
    hosts = _two_hosts(task)
    if not all(p.requires_grad for p in hosts[0].parameters()):
        raise NoRuleError("hosts with frozen parameters cannot be stacked; train them with engine='loop'")
    x, y = (part[:2] for part in (task.splits().train_x, task.splits().train_y))
    for training in (True, False):
        _compare(task, [host.train(training) for host in hosts], x, y)


def structure(model: nn.Module) -> tuple[Any, ...]:
    """What two hosts must have in common to be stacked."""
    return (repr(model), tuple((name, p.shape) for name, p in model.named_parameters()))


def _two_hosts(task: Task) -> list[nn.Module]:
    """Two hosts of one structure with different weights."""
    first, second = (build_episode_host(task, Episode(seed=seed, horizon=1, rent=0.0)) for seed in (0, 1))
    if structure(first) != structure(second):
        second = copy.deepcopy(first)
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.mul_(0.5)
    return [first, second]


@torch.no_grad()
def _compare(task: Task, hosts: list[nn.Module], x: Tensor, y: Tensor) -> None:
    buffers = [{name: b.clone() for name, b in host.named_buffers()} for host in hosts]
    parameters = [Stacked(torch.stack(pair)) for pair in zip(*(h.parameters() for h in hosts), strict=True)]
    alone = torch.stack([host(x) for host in hosts])
    if any(not torch.equal(b, buffers[0][name]) for host in hosts for name, b in host.named_buffers()):
        raise NoRuleError(
            "hosts whose buffers differ, or change in training (BatchNorm), cannot be stacked; use engine='loop'"
        )
    template = Template(build_episode_host(task, Episode(seed=0, horizon=1, rent=0.0)).train(hosts[0].training))
    template.bind(parameters)
    try:
        together = template(stacked(x.expand(2, *x.shape)))
        task.loss(together, stacked(y.expand(2, *y.shape)))
        task.score(together, y)
    except NoRuleError:
        raise
    except Exception as error:
        raise NoRuleError(f"the host fails on stacked tensors ({error}); train it with engine='loop'") from error
    difference = (together.data - alone).abs().max()
    if not difference <= TOLERANCE * alone.abs().max():
        raise NoRuleError(
            f"stacked hosts answer differently from hosts alone (by {float(difference):.2g}); use engine='loop'"
        )
