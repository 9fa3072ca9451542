"""Whether a task's hosts can be stacked: two of them are, and must answer as they do alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.env.engine.run import build_episode_host
from esper.env.engine.stacking.stacked_tensor import NoRuleError, Stacked, stacked
from esper.env.engine.stacking.template import Template, own_tensors
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
    if any(isinstance(m, _BatchNorm) and m.momentum is None for m in hosts[0].modules()):
        raise NoRuleError("BatchNorm without momentum counts its batches and cannot be stacked; use engine='loop'")
    own = _own(hosts)
    shared = _shared_buffers(hosts[0])
    alone = torch.stack([host(x) for host in hosts])
    if any(not torch.equal(b, shared[name]) for host in hosts for name, b in _shared_buffers(host).items()):
        raise NoRuleError("hosts whose buffers differ, or change in training, cannot be stacked; use engine='loop'")
    template = Template(build_episode_host(task, Episode(seed=0, horizon=1, rent=0.0)).train(hosts[0].training))
    template.bind(own)
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
    if not all(torch.allclose(o.data, k.data, TOLERANCE, TOLERANCE) for o, k in zip(own, _own(hosts), strict=True)):
        raise NoRuleError("stacked hosts come to other running statistics than hosts alone; use engine='loop'")


def _own(hosts: list[nn.Module]) -> list[Stacked]:
    """Copies of what each host has of its own."""
    return [Stacked(torch.stack(pair)) for pair in zip(*(own_tensors(h).values() for h in hosts), strict=True)]


def _shared_buffers(host: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that all hosts are to have in common; the count of batches is not used."""
    own = own_tensors(host)
    return {
        name: buffer.clone()
        for name, buffer in host.named_buffers()
        if name not in own and not name.endswith("num_batches_tracked")
    }
