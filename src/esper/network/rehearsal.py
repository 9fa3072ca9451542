"""Whether an optimizer can take in parameters while it runs: tried out, on a copy of it that trains stand-ins.

An optimizer is not known by its name: what it keeps, and for whom, shows in a few steps. The copy holds a parameter of
the same number of dimensions, two entries in each, in the place of every parameter of the host.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.network.optimizer import join

STEPS = 2
"""Steps before parameters join, and after."""

_SHAPES = {0: "numbers", 1: "vectors (such as biases and norms)", 2: "matrices"}


def rehearse(optimizer: Optimizer, joining: Iterable[tuple[int, int]]) -> None:
    """Try out what growth will ask of an optimizer; the optimizer itself is not touched.

    Args:
        optimizer: What trains the host.
        joining: (index of the param group, number of dimensions) of parameters that may join.

    Raises:
        ValueError: If its steps change settings of whole param groups (counters that a parameter which joins later has
            not gone through), or if it cannot train such parameters.
    """
    name = type(optimizer).__name__
    with torch.random.fork_rng(devices=_accelerators(optimizer)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copied = _copy_with_stand_ins(optimizer)
            before = _settings(copied)
            _step(copied)
        except Exception as error:
            raise ValueError(
                f"{name} cannot train what seeds bring, parameters with dense gradients and without any state yet: "
                f"tried out on a copy, it raised {_words(error)}. Use an optimizer that does, such as Adam or SGD"
            ) from error
        counted = sorted({k for old, new in zip(before, _settings(copied), strict=True) for k in _changed(old, new)})
        if counted:
            raise ValueError(
                f"{name} keeps {', '.join(counted)} for a whole param group, not for each parameter, and changes it in "
                "its steps; the first steps of a seed that joins later would have a wrong size. Use an optimizer that "
                "keeps its state for each parameter, such as Adam or SGD"
            )
        for group, dims in sorted(set(joining)):
            _let_join(copied, group, dims, name)


def _let_join(copied: Optimizer, group: int, dims: int, name: str) -> None:
    first = next(p for g in copied.param_groups[group:] + copied.param_groups for p in g["params"])
    newcomer = nn.Parameter(torch.ones((2,) * dims, dtype=first.dtype, device=first.device))
    join(copied, [group], [("newcomer", newcomer)])
    try:
        _step(copied)
    except Exception as error:
        shape = _SHAPES.get(dims, f"tensors of {dims} dimensions")
        raise ValueError(
            f"{name} cannot train what seeds bring: {shape} that join its param group {group} while it runs. Tried out "
            f"on a copy, it raised {_words(error)}. Use an optimizer that takes in all parameters of the host, such as "
            "AdamW or SGD, or name another of its groups for them: Growth(..., param_group=...)"
        ) from error


def _copy_with_stand_ins(optimizer: Optimizer) -> Optimizer:
    copied: Optimizer = object.__new__(type(optimizer))
    memo: dict[int, Any] = {id(p): _stand_in(p) for group in optimizer.param_groups for p in group["params"]}
    memo |= {id(optimizer): copied, id(optimizer.state): defaultdict(dict)}
    copied.__setstate__(copy.deepcopy({k: v for k, v in vars(optimizer).items() if not _are_hooks(k, v)}, memo))
    return copied


def _are_hooks(name: str, value: object) -> bool:
    return name.endswith("_hooks") and isinstance(value, OrderedDict)


def _stand_in(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.ones((2,) * parameter.dim(), dtype=parameter.dtype, device=parameter.device))


def _step(optimizer: Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def closure() -> Tensor:
        for p in parameters:
            p.grad = torch.ones_like(p)
        return torch.zeros(())

    step = type(optimizer).step
    wanted = inspect.signature(step).parameters.get("closure")
    for _ in range(STEPS):
        closure()
        if wanted is not None and wanted.default is inspect.Parameter.empty:
            step(optimizer, closure)  # type: ignore[arg-type]
        else:
            step(optimizer)


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    return copy.deepcopy(groups)


def _changed(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    return {key for key in old.keys() | new.keys() if not _same(old.get(key), new.get(key))}


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return torch.equal(old, new)
    return type(old) is type(new) and bool(old == new)


def _accelerators(optimizer: Optimizer) -> list[torch.device]:
    return list({p.device for group in optimizer.param_groups for p in group["params"] if p.is_cuda})


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
