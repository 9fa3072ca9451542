"""A growing network as plain data, and back: the seeds are rebuilt before their weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from esper.actions import BLUEPRINT_NAMES, STYLES
from esper.lifecycle import Stage
from esper.network import optimizer as surgery
from esper.network.alpha import Ramp
from esper.network.seed import Seed, plant
from esper.network.slot import Life, Slot, device_of, number
from esper.observation import SlotStatistics

if TYPE_CHECKING:
    from esper.network.growing_network import GrowingNetwork

FORMAT = 1
"""Version of what :func:`save` returns."""


def save(network: GrowingNetwork) -> dict[str, Any]:
    """Everything about a growing network but the host's weights; nothing in it is shared with the network."""
    return {
        "format": FORMAT,
        "decision": network.decision,
        "seed": network.seed,
        "host_params": network.host_params,
        "host_gradient_rms": number(network.host_gradient_rms),
        "slots": {slot.name: _save_slot(network, slot) for slot in network.slots},
    }


def _save_slot(network: GrowingNetwork, slot: Slot) -> dict[str, Any]:
    state: dict[str, Any] = {
        "spec": asdict(slot.spec),
        "life": {**asdict(slot.life), "stage": int(slot.stage)},
        "statistics": {name: number(value) for name, value in vars(slot.statistics).items()},
    }
    if slot.seed is not None:
        state["weights"] = {name: value.detach().clone() for name, value in slot.seed.state_dict().items()}
        if network.optimizer is not None:
            state["positions"] = surgery.positions(network.optimizer, slot.parameters())
    return state


def load(network: GrowingNetwork, state: Mapping[str, Any]) -> None:
    """Make a network what :func:`save` saw. Everything that can go wrong goes wrong before anything changes."""
    _check(network, state)
    saved = [state["slots"][slot.name] for slot in network.slots]
    seeds = [_rebuild(network, slot, entry) for slot, entry in zip(network.slots, saved, strict=True)]
    if network.optimizer is not None:
        placed = _placed_parameters(network.slots, saved, seeds)
        surgery.replace(network.optimizer, network.seed_parameters(), placed)
    for slot, entry, seed in zip(network.slots, saved, seeds, strict=True):
        slot.seed = seed
        slot.life = _life_from(entry["life"])
        slot.statistics = SlotStatistics(**{name: _tensor(value) for name, value in entry["statistics"].items()})
        slot.refresh()
    network.decision = state["decision"]
    network.seed = state["seed"]
    network.host_gradient_rms = _tensor(state["host_gradient_rms"])


def _check(network: GrowingNetwork, state: Mapping[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise ValueError(f"expected the state of a GrowingNetwork, format {FORMAT}; got {state.get('format')!r}")
    ours = {slot.name: _form(asdict(slot.spec)) for slot in network.slots}
    theirs = {name: _form(entry["spec"]) for name, entry in state["slots"].items()}
    if list(ours.items()) != list(theirs.items()) or state["host_params"] != network.host_params:
        raise ValueError(
            f"the state is of another host: it has {state['host_params']} parameters and slots {theirs}; this one has "
            f"{network.host_params} and {ours}"
        )


def _form(spec: Mapping[str, Any]) -> str:
    """What must agree; the spatial sizes of the example need not."""
    return f"{spec['kind']} of {spec['channels']}" + (", causal" if spec["causal"] else "")


def _rebuild(network: GrowingNetwork, slot: Slot, entry: Mapping[str, Any]) -> Seed | None:
    if "weights" not in entry:
        return None
    blueprint, style = BLUEPRINT_NAMES[entry["life"]["blueprint"]], STYLES[entry["life"]["style"]]
    device = device_of(slot, network.model)
    seed = plant(blueprint, slot.spec, style, entropy=(0,), device=device, dtype=slot.dtype)
    seed.load_state_dict(entry["weights"])
    return seed


def _placed_parameters(
    slots: Sequence[Slot], saved: Sequence[Mapping[str, Any]], seeds: Sequence[Seed | None]
) -> dict[tuple[int, int], tuple[str, nn.Parameter]]:
    """The rebuilt seeds' parameters, named, by the (group, index) at which they stood in the optimizer."""
    placed: dict[tuple[int, int], tuple[str, nn.Parameter]] = {}
    for slot, entry, seed in zip(slots, saved, seeds, strict=True):
        if seed is None:
            continue
        if "positions" not in entry:
            raise ValueError("the state was saved without an optimizer; build the network without one to load it")
        named = [(slot.parameter_name(name), parameter) for name, parameter in seed.named_parameters()]
        placed.update({(g, i): item for (g, i), item in zip(entry["positions"], named, strict=True)})
    return placed


def _life_from(saved: Mapping[str, Any]) -> Life:
    ramp = None if saved["ramp"] is None else Ramp(**saved["ramp"])
    return Life(**{**saved, "stage": Stage(saved["stage"]), "ramp": ramp})


def _tensor(value: float | None) -> Tensor | None:
    return None if value is None else torch.tensor(value)
