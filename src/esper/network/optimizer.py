"""Parameters that come and go while an optimizer runs.

New parameters join existing param groups, because a new group breaks schedulers that count groups (OneCycleLR,
LambdaLR); pruned ones leave together with their state. Nothing else of the optimizer is touched.

Which group a parameter joins is decided by its like in the host (:func:`place`), or by the user (``ParamGroup``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.utils.hooks import RemovableHandle

ParamGroup = Callable[[str, nn.Parameter, str], int]
"""(name of the parameter, the parameter, name of the slot) → index of the param group that it joins."""

_LIKES = {"vector": ("vector",), "matrix": ("matrix", "kernel"), "kernel": ("kernel", "matrix")}
"""Beside which parameters of the host a new one stands, the best first."""


# ------------------------------------------------------------------------------------------- where they belong


@contextmanager
def forward_order(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """The modules of ``model`` by path, in the order in which they end in the forward passes inside; filled at the end.

    One that does not run itself, because another reads its weights, has the place of the module around it.
    """
    order: dict[str, nn.Module] = {}
    ended: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            ended.setdefault(name, len(ended))

        return hook

    modules = dict(model.named_modules())
    runnable = {name: m for name, m in modules.items() if not isinstance(m, torch.jit.ScriptModule)}  # takes no hooks
    handles = [module.register_forward_hook(note(name)) for name, module in runnable.items()]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()
    order.update(sorted(modules.items(), key=lambda item: _rank(item[0], ended)))


def _rank(name: str, ended: Mapping[str, int]) -> int:
    while name and name not in ended:
        name = name.rpartition(".")[0]
    return ended.get(name, len(ended))


def nearest(order: Mapping[str, nn.Module], path: str) -> list[nn.Module]:
    """The modules that hold parameters themselves, from the nearest to the module at ``path`` to the farthest.

    Near is what runs a short time before or after it; of two equally near ones the one in the same part of the host,
    else the earlier.
    """
    names = [name for name, module in order.items() if name == path or module._parameters]
    here = names.index(path)

    def distance(place: int) -> tuple[int, int, bool]:
        return abs(place - here), -_shared_parts(names[place], path), place > here

    return [order[names[place]] for place in sorted(range(len(names)), key=distance)]


def _shared_parts(a: str, b: str) -> int:
    pairs = list(zip(a.split("."), b.split("."), strict=False))
    return next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))


def place(optimizer: Optimizer, near: Iterable[nn.Module], parameters: Iterable[nn.Parameter]) -> list[int]:
    """Index of the param group that each new parameter joins: that of its like in the nearest module that is trained.

    Vectors (biases, norms, gains) stand beside vectors, matrices beside matrices, kernels of convolutions beside
    kernels, so that a split into decayed and other parameters goes on. A module without its like says with its learning
    rate which groups come into question: of those, the nearest that holds its like; else the module's own.

    Args:
        optimizer: What trains the host.
        near: Modules of the host, the nearest first.
        parameters: The new parameters.
    """
    groups = optimizer.param_groups
    index = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
    homes = [
        {_kind(p, module): index[id(p)] for p in module._parameters.values() if p is not None and id(p) in index}
        for module in near
    ]
    homes = [home for home in homes if home] or [{"vector": 0, "matrix": 0}]
    own = next(iter(homes[0].values()))
    rate = learning_rate(groups[own])
    level = [{kind: g for kind, g in home.items() if learning_rate(groups[g]) == rate} for home in homes]

    def find(kind: str) -> int:
        found = (home[like] for like in _LIKES[kind] for home in (homes[0], *level) if like in home)
        return next(found, own)

    by_kind = {kind: find(kind) for kind in _LIKES}
    return [by_kind[_kind(p)] for p in parameters]


def _kind(parameter: nn.Parameter, module: nn.Module | None = None) -> str:
    """What a parameter is like; an embedding's table is like no parameter of a seed."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "table"
    return "vector" if parameter.dim() < 2 else "matrix" if parameter.dim() == 2 else "kernel"


def ask(optimizer: Optimizer, param_group: ParamGroup, name: str, parameter: nn.Parameter, slot: str) -> int:
    """The group that the user's function names for a new parameter.

    Raises:
        ValueError: If it is no index of a group of the optimizer.
    """
    answer = param_group(name, parameter, slot)
    count = len(optimizer.param_groups)
    try:
        index = operator.index(answer)
    except TypeError:
        index = -1
    if not 0 <= index < count or isinstance(answer, bool):
        raise ValueError(
            f"param_group({name!r}, <parameter {tuple(parameter.shape)}>, {slot!r}) must return the index of one of "
            f"the optimizer's {count} param group(s), 0 to {count - 1}; got {answer!r}"
        )
    return index


def learning_rate(group: Mapping[str, Any]) -> float | None:
    """The learning rate of a param group; ``None`` for an optimizer that finds its own."""
    rate = group.get("lr")
    return None if rate is None else float(rate)


# ------------------------------------------------------------------------------------------- coming and going


def join(optimizer: Optimizer, groups: Sequence[int], named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Append each parameter to its param group."""
    for group, (name, parameter) in zip(groups, named, strict=True):
        _insert(optimizer, group, len(optimizer.param_groups[group]["params"]), name, parameter)


def leave(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of their param groups, and their state out of the optimizer."""
    gone = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        keep = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        if "param_names" in group:
            group["param_names"][:] = [group["param_names"][i] for i in keep]
        group["params"][:] = [group["params"][i] for i in keep]
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]


def rename(optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """From now on these parameters go by these names, where the optimizer knows names."""
    names = {id(parameter): name for name, parameter in named}
    for group in optimizer.param_groups:
        if "param_names" in group:
            known = zip(group["params"], group["param_names"], strict=True)
            group["param_names"][:] = [names.get(id(parameter), name) for parameter, name in known]


def positions(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> list[tuple[int, int]]:
    """(group, index in the group) of each parameter.

    An optimizer's ``state_dict`` knows its parameters by position only, so a resumed run must put them back there.
    """
    places = {id(p): (g, i) for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])}
    return [places[id(p)] for p in parameters]


def replace(
    optimizer: Optimizer,
    present: Sequence[nn.Parameter],
    placed: Mapping[tuple[int, int], tuple[str, nn.Parameter]],
) -> None:
    """Take ``present`` out and put other, named parameters in at recorded (group, index) positions.

    They go in from the earliest position on, so everything ends up where it was when the positions were recorded.

    Raises:
        ValueError: If the optimizer has not the groups or the other parameters that it had; nothing has changed then.
    """
    gone = {id(p) for p in present}
    sizes = [sum(id(p) not in gone for p in group["params"]) for group in optimizer.param_groups]
    for group, index in sorted(placed):
        if group >= len(sizes) or index > sizes[group]:
            raise ValueError(
                f"a parameter of a seed belongs at position {index} of param group {group}, but the optimizer has "
                f"{len(sizes)} group(s), of sizes {sizes}; build it with the same groups as in the run that was saved"
            )
        sizes[group] += 1
    leave(optimizer, present)
    for group, index in sorted(placed):
        _insert(optimizer, group, index, *placed[group, index])


def _insert(optimizer: Optimizer, group: int, index: int, name: str, parameter: nn.Parameter) -> None:
    target = optimizer.param_groups[group]
    begin_state(optimizer, target, parameter)
    target["params"].insert(index, parameter)
    if "param_names" in target:
        target["param_names"].insert(index, name)


def begin_state(optimizer: Optimizer, group: Mapping[str, Any], parameter: nn.Parameter) -> None:
    """Make the state of a new parameter where the optimizer will not make it itself in its next step.

    Fused SGD makes momentum for all parameters of a group together. A momentum of 0 is what the first step begins with,
    where there is no dampening.
    """
    fused = isinstance(optimizer, SGD) and group["fused"]
    if fused and any(optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in group["params"]):
        optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}


# ------------------------------------------------------------------------------------------- loading


def go_back(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state of this optimizer from earlier in the run; groups that have joined since then begin anew."""
    groups = list(state["param_groups"])
    new = optimizer.param_groups[len(groups) :]
    for group in new:
        first = sum(len(g["params"]) for g in groups)
        groups.append({**group, "params": list(range(first, first + len(group["params"])))})
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for group in optimizer.param_groups[len(groups) - len(new) :]:
        for parameter in group["params"]:
            begin_state(optimizer, group, parameter)


def guard_loading(optimizer: Optimizer) -> RemovableHandle:
    """From now on the optimizer says what to do if it is given a state for other parameters than it holds."""
    return optimizer.register_load_state_dict_pre_hook(_check_sizes)


def _check_sizes(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    ours, theirs = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    if ours != theirs:
        raise ValueError(
            f"the state is of an optimizer with {theirs} parameters in its groups, but this one holds {ours}, those of "
            "seeds included; load the growth's state of the same checkpoint first (growth.load_state_dict), which puts "
            "the seeds' parameters in place"
        )
