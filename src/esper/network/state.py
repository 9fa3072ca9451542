"""The slots of a growing network as plain data, and back: seeds are rebuilt before their weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.actions import ALL_BLUEPRINTS, STYLES, own_blueprints
from esper.lifecycle import Stage
from esper.network import optimizer as surgery
from esper.network.alpha import Ramp
from esper.network.nursery import Nursery
from esper.network.seed import Seed, plant
from esper.network.slot import Life, Slot, form_of, number
from esper.observation import Audition, SlotStatistics

FORMAT = 2
"""Version of the state of a growing network."""


def save_slot(slot: Slot, optimizer: Optimizer | None) -> dict[str, Any]:
    """Everything about one slot, its seed included; nothing in it is shared with the slot."""
    state: dict[str, Any] = {
        "spec": asdict(slot.spec),
        "life": {**asdict(slot.life), "stage": int(slot.stage)},
        "statistics": {name: number(value) for name, value in vars(slot.statistics).items()},
    }
    if slot.seed is not None:
        state["weights"] = _copied(slot.seed)
    if slot.nursery is not None:
        state["nursery"] = {blueprint: _copied(candidate) for blueprint, candidate in slot.nursery.seeds.items()}
    if optimizer is not None and (slot.seed or slot.nursery):
        state["positions"] = surgery.positions(optimizer, [parameter for _, parameter in slot.named_parameters()])
    return state


def _copied(seed: Seed) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in seed.state_dict().items()}


def load_slots(slots: Sequence[Slot], states: Mapping[str, Any], model: nn.Module, optimizer: Optimizer | None) -> None:
    """Make slots what :func:`save_slot` saw. Everything that can go wrong goes wrong before anything changes."""
    saved = [states[slot.name] for slot in slots]
    held = [_rebuild(slot, entry, model) for slot, entry in zip(slots, saved, strict=True)]
    if optimizer is not None:
        present = [p for slot in slots for _, p in slot.named_parameters()]
        surgery.replace(optimizer, present, _placed_parameters(slots, saved, held))
    for slot, entry, (seed, nursery) in zip(slots, saved, held, strict=True):
        slot.seed, slot.nursery = seed, nursery
        slot.life = _life_from(entry["life"])
        slot.statistics = SlotStatistics(**{name: as_tensor(value) for name, value in entry["statistics"].items()})
        slot.refresh()


def check(state: Mapping[str, Any], slots: Sequence[Slot], host_params: int) -> None:
    """Raise ValueError unless ``state`` is that of a network with these slots and as many parameters in its host."""
    if state.get("format") != FORMAT:
        raise ValueError(f"expected the state of a GrowingNetwork, format {FORMAT}; got {state.get('format')!r}")
    registered = state.get("own_blueprints", [])
    if registered != own_blueprints()[: len(registered)]:
        raise ValueError(
            f"the state was saved where the blueprints {registered} were registered; here are {own_blueprints()}. "
            "Register the same ones in the same order (import the modules that do) before it is loaded"
        )
    ours = {slot.name: _form(asdict(slot.spec)) for slot in slots}
    theirs = {name: _form(entry["spec"]) for name, entry in state["slots"].items()}
    if list(ours.items()) != list(theirs.items()) or state["host_params"] != host_params:
        raise ValueError(
            f"the state is of another host: it has {state['host_params']} parameters and slots {theirs}; this one has "
            f"{host_params} and {ours}"
        )


def _form(spec: Mapping[str, Any]) -> str:
    """What must agree; the spatial sizes of the example need not."""
    return f"{spec['kind']} of {spec['channels']}" + (", causal" if spec["causal"] else "")


def _rebuild(slot: Slot, entry: Mapping[str, Any], model: nn.Module) -> tuple[Seed | None, Nursery | None]:
    """The seed and the candidates that the slot held."""
    device, dtype = form_of(slot, model)

    def seed_of(blueprint: int, style: str, weights: Mapping[str, Tensor]) -> Seed:
        seed = plant(ALL_BLUEPRINTS[blueprint], slot.spec, style, entropy=(0,), device=device, dtype=dtype)
        seed.load_state_dict(weights)
        return seed

    life, nursery = entry["life"], entry.get("nursery")
    seed = seed_of(life["blueprint"], STYLES[life["style"]], entry["weights"]) if "weights" in entry else None
    candidates = {b: seed_of(b, "add", weights) for b, weights in (nursery or {}).items()}
    return seed, Nursery(candidates) if candidates else None


def _placed_parameters(
    slots: Sequence[Slot], saved: Sequence[Mapping[str, Any]], held: Sequence[tuple[Seed | None, Nursery | None]]
) -> dict[tuple[int, int], tuple[str, nn.Parameter]]:
    """The rebuilt parameters, named, by the (group, index) at which they stood in the optimizer."""
    placed: dict[tuple[int, int], tuple[str, nn.Parameter]] = {}
    for slot, entry, (seed, nursery) in zip(slots, saved, held, strict=True):
        if seed is None and nursery is None:
            continue
        if "positions" not in entry:
            raise ValueError("the state was saved without an optimizer; build the network without one to load it")
        named = slot.names_of(seed, nursery)
        placed.update({(g, i): item for (g, i), item in zip(entry["positions"], named, strict=True)})
    return placed


def _life_from(saved: Mapping[str, Any]) -> Life:
    ramp = None if saved["ramp"] is None else Ramp(**saved["ramp"])
    auditioned = {blueprint: Audition(**result) for blueprint, result in saved["auditioned"].items()}
    return Life(**{**saved, "stage": Stage(saved["stage"]), "ramp": ramp, "auditioned": auditioned})


def as_tensor(value: float | None) -> Tensor | None:
    """A statistic as it was before :func:`save_slot` made a number of it."""
    return None if value is None else torch.tensor(value)
