"""Parameters that come and go while an optimizer runs.

New parameters join an existing param group, because a new group breaks schedulers that count groups (OneCycleLR,
LambdaLR); pruned ones leave together with their state. Nothing else of the optimizer is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer


def home_group(optimizer: Optimizer, module: nn.Module) -> int:
    """Index of the param group that holds parameters of ``module``; 0 if none does."""
    own = {id(p) for p in module.parameters()}
    for index, group in enumerate(optimizer.param_groups):
        if any(id(p) in own for p in group["params"]):
            return index
    return 0


def join(optimizer: Optimizer, group: int, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Append parameters to a param group."""
    target = optimizer.param_groups[group]
    for name, parameter in named:
        _insert(target, len(target["params"]), name, parameter)


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
        _insert(optimizer.param_groups[group], index, *placed[group, index])


def _insert(group: dict, index: int, name: str, parameter: nn.Parameter) -> None:
    group["params"].insert(index, parameter)
    if "param_names" in group:
        group["param_names"].insert(index, name)
