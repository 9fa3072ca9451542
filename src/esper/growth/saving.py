"""A grown network as one file of data: written by ``Growth.save``, built into a host again by :func:`load_grown`.

No code is run at loading: the file holds tensors (safetensors) and, in its header, JSON.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from esper.actions import ALL_BLUEPRINTS, STYLES
from esper.files import Format, from_plain
from esper.growth.arguments import unwrap
from esper.growth.probe import compile_afresh
from esper.lifecycle import Stage
from esper.network import state as saved_state
from esper.network.blueprints import SlotSpec
from esper.network.growing_network import check_plain
from esper.network.grown import plain_copy
from esper.network.host_call import HostCall
from esper.network.placing import find_places, is_of_seed
from esper.network.slot import Life, Slot
from esper.network.survey import survey

FILE = "esper_grown.safetensors"
"""Name of the file in the directory; no name that other libraries read."""

GROWN = Format("esper_grown", 2, "a grown network")


@dataclass(frozen=True)
class _Seed:
    """A seed of the file, but for its weights."""

    blueprint: str
    style: str
    alpha: float
    spec: SlotSpec

    def __post_init__(self) -> None:
        for what, value, known in (("blueprint", self.blueprint, ALL_BLUEPRINTS), ("style", self.style, STYLES)):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, got '{value}'")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, got {self.alpha}")


@dataclass(frozen=True)
class _Description:
    """What stands beside the weights of a grown network."""

    host: str
    """Class of the host."""
    same: dict[str, str]
    """Further names of tensors, and the first name of each."""
    slots: list[str]
    seeds: dict[str, _Seed]
    """By slot."""

    def __post_init__(self) -> None:
        if homeless := sorted(set(self.seeds) - set(self.slots)):
            raise ValueError(f"seeds must stand in slots, {', '.join(self.slots)}; got seeds in {', '.join(homeless)}")


# ------------------------------------------------------------------------------------------- writing


def save_grown(directory: str | os.PathLike[str], model: nn.Module, slots: Mapping[str, Any]) -> Path:
    """Write a host and its seeds of alpha > 0 to ``directory``, as one file, whole or not at all.

    Args:
        directory: Made where it is missing.
        model: The host.
        slots: The state of its slots, by name, as ``GrowingNetwork.state_dict()["slots"]`` has it.

    Raises:
        ValueError: If the host's ``state_dict`` holds anything but tensors.
        OSError: If the file cannot be written.
    """
    kept = {name: entry for name, entry in slots.items() if entry["life"]["alpha"] > 0}
    tensors, same = _distinct({k: v for k, v in model.state_dict().items() if not is_of_seed(k)})
    description = {
        "host": type(model).__name__,
        "same": same,
        "slots": list(slots),
        "seeds": {name: _describe(entry) for name, entry in kept.items()},
    }
    everything = {f"host/{key}": tensor for key, tensor in tensors.items()}
    for name, entry in kept.items():
        everything |= {f"seed/{name}/{key}": tensor for key, tensor in entry["weights"].items()}
    path = Path(directory) / FILE
    GROWN.write(path, description, everything)
    return path


def _describe(entry: Mapping[str, Any]) -> dict[str, Any]:
    life = entry["life"]
    return {
        "blueprint": ALL_BLUEPRINTS[life["blueprint"]],
        "style": STYLES[life["style"]],
        "alpha": life["alpha"],
        "spec": entry["spec"],
    }


def _distinct(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state, each once, and for every further name of one its first name."""
    first: dict[Any, str] = {}
    same: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the host's state_dict holds a {type(value).__name__} at '{name}', which is no tensor; save "
                "growth.state_dict() and model.state_dict() by torch.save instead"
            )
        identity = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        if first.setdefault(identity, name) != name:
            same[name] = first[identity]
    return {name: value for name, value in state.items() if name not in same}, same


# ------------------------------------------------------------------------------------------- reading


def load_grown(directory: str | os.PathLike[str], host: nn.Module, example_input: Any) -> nn.Module:
    """Make ``host`` the grown network that ``Growth.save`` wrote to ``directory``: its weights and its seeds.

    As in::

        model = esper.load_grown("runs/mine", MyNetwork(), x[:2])

    The seeds are submodules of the host, as they were while it grew, and each acts for good at the alpha that it had.
    The network can be used and trained like any other, by an optimizer built on it afterwards;
    :func:`grown_model` gives a plain copy of it.

    Args:
        directory: What ``Growth.save`` was given.
        host: A network built as the host was; its weights are overwritten. It may be compiled.
        example_input: What the host is called with: a tensor, a tuple (positional arguments) or a mapping (keyword
            arguments).

    Returns:
        ``host``.

    Raises:
        ValueError: If there is no such file, it is damaged or of another version, the host is another one or carries
            seeds already. The host is as it was then.
        OSError: If the file cannot be read.

    Example:
        >>> import tempfile, torch
        >>> from esper import Decision, Growth
        >>> host = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model, x = host(), torch.randn(2, 4)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> growth = Growth(model, optimizer, slots=["1"], example_input=x)
        >>> directory = tempfile.mkdtemp()
        >>> _ = growth.save(directory)
        >>> torch.equal(load_grown(directory, host(), x)(x), model(x))
        True
    """
    path = Path(directory) / FILE
    plain, tensors = GROWN.read(path)
    description = from_plain(_Description, plain, path)
    model = unwrap(host)
    check_plain(model)
    weights = _under(tensors, "host/")
    weights |= {name: weights[first] for name, first in description.same.items() if first in weights}
    _check_weights(model, weights, description.host, path)
    seeds = {name: _state_of(seed, _under(tensors, f"seed/{name}/")) for name, seed in description.seeds.items()}
    try:
        attach(model, description.slots, seeds, example_input)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the seeds in '{path}' cannot be built into this {type(model).__name__}: {error}") from error
    model.load_state_dict(weights, strict=False)
    compile_afresh()
    return host


def grown_model(model: nn.Module) -> nn.Module:
    """A plain copy of a network that carries seeds: those of alpha > 0 are built in, and nothing else is left.

    For what :func:`load_grown` returned and for copies of a growing network (``copy.deepcopy``, averages of weights);
    of the growing one itself ``growth.grown_model()`` gives the network as it was evaluated last.

    Raises:
        ValueError: If ``model`` is not the host itself but something around it.
    """
    host = unwrap(model)
    slots = acting_slots(host)
    for slot in slots:
        if dict(host.named_modules()).get(slot.name) is not slot.module:
            raise ValueError(
                f"expected the network that carries the seeds, got a {type(host).__name__} around it: it has no slot "
                f"'{slot.name}'; give the module inside (of an AveragedModel: .module)"
            )
    return plain_copy(host, slots)


def acting_slots(model: nn.Module) -> list[Slot]:
    """The slots whose hooks are on the modules of ``model``: those that hold a seed."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return [owner for owner in owners if isinstance(owner, Slot)]


def network_as_evaluated(state: Mapping[str, Any]) -> dict[str, Any]:
    """The network's part of ``Growth.state_dict``, without a decision that no training has followed."""
    pending = state["before_decision"] if state["probe"]["steps"] == 0 else None
    network: dict[str, Any] = state["network"] if pending is None else pending
    return network


def attach(model: nn.Module, slots: Sequence[str], states: Mapping[str, Any], example_input: Any) -> None:
    """Build seeds into a host that carries none; there each acts as its state says, and nobody looks after it.

    Args:
        model: The host.
        slots: Names of all slots of the growth: they decide in which leaf a seed is registered.
        states: What :func:`esper.network.state.save_slot` saw, by slot, of those that held a seed.
        example_input: What the host is called with.

    Raises:
        ValueError: If a slot does not exist or carries something else than it did; nothing has changed then.
        RuntimeError: If the weights of a seed do not fit its blueprint; likewise.
    """
    if not states:
        return
    places = dict(zip(slots, find_places(model, slots), strict=True))
    sites, _ = survey(model, list(states), example_input, causal=False)  # whether it is causal, its state says
    call = HostCall({site.name: site.padding for site in sites})
    built = []
    for site in sites:
        spec = SlotSpec(**{**states[site.name]["spec"], "spatial": tuple(states[site.name]["spec"]["spatial"])})
        if (spec.kind, spec.channels) != (site.spec.kind, site.spec.channels):
            raise ValueError(
                f"slot '{site.name}' carried {spec.kind}s of {spec.channels} channels when it grew, but carries "
                f"{site.spec.kind}s of {site.spec.channels} here; build the host, and choose the example input, as for "
                "growth"
            )
        built.append(Slot(replace(site, spec=spec), places[site.name], call))
    saved_state.load_slots(built, states, model, None)
    call.attach(model)
    for slot in built:
        assert slot.seed is not None
        slot.seed.train(slot.module.training)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_weights(model: nn.Module, weights: Mapping[str, Tensor], host: str, path: Path) -> None:
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    if ours == theirs:
        return
    differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    name = differing[0]
    raise ValueError(
        f"'{path}' holds a grown {host}, and this {type(model).__name__} is built otherwise: {len(differing)} entries "
        f"of its state_dict differ, first '{name}' of shape {theirs.get(name)} in the file and {ours.get(name)} here; "
        "build the host as it was built for growth"
    )


def _state_of(seed: _Seed, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A seed that is kept for good."""
    blueprint, style = ALL_BLUEPRINTS.index(seed.blueprint), STYLES.index(seed.style)
    life = Life(Stage.FOSSILIZED, blueprint, style, alpha=seed.alpha, alpha_target=seed.alpha, germinations=1)
    return {"spec": asdict(seed.spec), "life": asdict(life), "statistics": {}, "weights": dict(weights)}
