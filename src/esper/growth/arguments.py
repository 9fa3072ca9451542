"""What the user gave to ``Growth``, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from torch import nn
from torch.optim import LBFGS, Optimizer

from esper.actions import STYLES
from esper.network.blueprints import BLUEPRINTS, count_parameters
from esper.network.growing_network import GrowingNetwork
from esper.network.rehearsal import rehearse
from esper.network.seed import seed_parameters

RENT = 0.02
"""Price of a doubling of parameters, in points of score, where nothing else caps them."""

RENT_WITHIN_BUDGET = 0.0025
"""The same where a budget does: what :file:`benchmarks/rent_within_budget.py` found on validation data."""


def usual_rent(*budgets: int | None) -> float:
    """The rent of who has named none, by the budgets that they have."""
    return RENT if all(budget is None for budget in budgets) else RENT_WITHIN_BUDGET


def unwrap(model: nn.Module) -> nn.Module:
    """The host itself, also where it comes compiled."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(
            f"expected the host itself, got it inside {type(model).__name__}; give Growth the module inside and train "
            "what growth.parallel() returns: it wraps the host and its seeds, and again when they have grown"
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a torch.nn.Module to grow, got {type(model).__name__}")
    sharded = [name for name, p in model.named_parameters() if hasattr(p, "device_mesh")]  # a DTensor
    if sharded:
        raise ValueError(
            f"the parameters of this {type(model).__name__} are spread over processes ({sharded[0]} and "
            f"{len(sharded) - 1} more, by fully_shard or the like), and a seed, which is whole on every process, "
            "cannot join them. Grow the model unsharded, in several processes through growth.parallel(), and shard "
            "growth.grown_model() afterwards"
        )
    return getattr(model, "_orig_mod", model)


def check_options(
    *,
    rent: float | None,
    horizon: int | None,
    train_samples: int | None,
    contributions: bool | Callable[..., object],
    param_group: Callable[..., object] | None,
    chance_score: float | None,
    chance_loss: float | None,
    log: Callable[..., object] | None,
) -> None:
    """Numbers are in their ranges, contributions are on, off, or a function, and functions are functions."""
    if param_group is not None and not callable(param_group):
        raise ValueError(
            "param_group is a function of (name of a seed's parameter, the parameter, name of its slot) that returns "
            f"the index of the param group to join, or None; got {param_group!r}"
        )
    if log is not None and not callable(log):
        raise ValueError(f"log is a function of (row, number of the step), such as Tracking(...).log; got {log!r}")
    if not isinstance(contributions, bool) and not callable(contributions):
        raise ValueError(
            f"contributions is True, False, or a function like evaluate() over fewer samples, got {contributions!r}"
        )
    if rent is not None and not 0 <= rent < float("inf"):
        raise ValueError(f"rent is a price in points of score, 0 or more, or None for the usual one, got {rent}")
    for name, value in (("horizon", horizon), ("train_samples", train_samples)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, or None if it is not known, got {value}")
    if chance_score is not None and not 0 <= chance_score <= 1:
        raise ValueError(f"chance_score is the score of a constant guess, a share in [0, 1], got {chance_score}")
    if chance_loss is not None and not 0 < chance_loss < float("inf"):
        raise ValueError(f"chance_loss is the loss of a constant guess, a number above 0, got {chance_loss}")
    if chance_score is not None and chance_loss is not None:
        raise ValueError(
            f"got chance_score={chance_score} and chance_loss={chance_loss}; give one of them: chance_loss where "
            "evaluate() returns a loss alone (the score of a constant guess is 0 then), else chance_score"
        )


def check_optimizer(optimizer: Optimizer, host: nn.Module) -> None:
    """The optimizer must train the host, and hold the state of the parameters itself."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}; Growth takes one optimizer"
        )
    name = type(optimizer).__name__
    inner = [key for key, value in vars(optimizer).items() if isinstance(value, Optimizer)]
    if inner:
        raise ValueError(
            f"{name} hands its parameters on to another optimizer, {type(vars(optimizer)[inner[0]]).__name__}, which "
            f"holds their state; give Growth that one, optimizer.{inner[0]}, and go on training with {name}"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS keeps one state for all parameters together, so none can join or leave; use an optimizer that keeps "
            "a state for each parameter, such as Adam or SGD"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in trained for p in host.parameters()):
        raise ValueError(
            f"the {name} trains no parameter of this {type(host).__name__}; give the optimizer that was built on "
            "model.parameters()"
        )


def check_joining(network: GrowingNetwork) -> None:
    """Every parameter that a seed may bring finds a param group, and the optimizer can train it there."""
    assert network.optimizer is not None
    joining: set[tuple[int, int]] = set()
    for slot in network.slots:
        named = [
            (slot.parameter_name(name), parameter)
            for blueprint, style in product(network.blueprints_for(slot), STYLES)
            for name, parameter in seed_parameters(blueprint, slot.spec, style)
        ]
        joining.update(zip(network.param_groups_for(slot, named), (p.dim() for _, p in named), strict=True))
    rehearse(network.optimizer, joining)


def check_budget(network: GrowingNetwork, blueprints: Sequence[str]) -> None:
    """A budget under which nothing can ever grow is a mistake."""
    if network.masks()["blueprint"].any():
        return
    prices = [
        max(count_parameters(name, slot.spec, style) for style in STYLES)
        for slot in network.slots
        for name in blueprints
        if BLUEPRINTS[name].fits(slot.spec)
    ]
    if not prices:
        raise ValueError(f"none of the blueprints {list(blueprints)} fits any of the slots {list(network.slot_names)}")
    raise ValueError(
        f"no blueprint is within budget={network.budget} and flops_budget={network.flops_budget}: the one with the "
        f"fewest parameters needs {min(prices)} here; raise the budget, or name narrower slots"
    )
