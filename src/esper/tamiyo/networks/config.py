"""What a network is built for, and how large it is: its sizes, spelled once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import nn

from esper.files import from_plain
from esper.heads import HeadTable
from esper.tamiyo.networks.memory import MemoryKind
from esper.tamiyo.networks.parts import Part

CriticMemory = Literal["shared", "separate", "none"]
Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

_MOST_LAYERS = 64


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What is chosen of a network, whatever it is built for."""

    hidden_dim: int = 128
    """Size of the memory and of the core, H."""
    head_dim: int = 64
    """Size of the hidden layer per head, and of the critic's."""
    slot_dim: int = 64
    """Size of a slot's encoding, E, where the state has slots."""
    part_dim: int = 128
    """Size of the encoding of a part of the observation that is no features: an image, a choice among many."""
    prospects: bool = False
    """Read what describes the choices of a head in each slot, where the environment shows `prospects`."""
    memory: MemoryKind = "lstm"
    """`none`: a feed-forward policy; hidden states are then empty, `[0, B, H]`."""
    memory_layers: int = 1
    """Layers of the memory, one above the other."""
    critic_memory: CriticMemory = "shared"
    """The critic reads what the policy remembers (`shared`), has a memory of its own (`separate`), or none."""
    encoder_layers: tuple[int, ...] = ()
    """Sizes of further layers before the one of `hidden_dim` that feeds the memory."""
    policy_layers: tuple[int, ...] = ()
    """Sizes of layers between the memory and the heads, which share them."""
    critic_layers: tuple[int, ...] = ()
    """Sizes of further layers of the critic, before its one of `head_dim`."""
    activation: Activation = "relu"
    """Of all layers before and after the memory; slots and images have their own."""
    probability_floor: float | Mapping[str, float] = 0.0
    """Least probability of an allowed choice, for every head that has choices or by head name; the same in rollout and
    update."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(NetworkOptions):
    """All of a network: what is chosen, and what it reads and decides.

    A state is ``run_size`` numbers about the run and then ``slot_size`` numbers about each of the slots.

    Raises:
        ValueError: For sizes that do not fit each other, or a floor that leaves no distribution.

    Example:
        >>> config = NetworkConfig(heads=HeadTable.from_json([{"name": "move", "num_choices": 3, "choices": []}]),
        ...                        state_dim=8, num_slots=2, slot_size=3)
        >>> config.run_size, NetworkConfig.from_json(config.to_json()) == config
        (2, True)
    """

    heads: HeadTable
    """The table of heads."""
    state_dim: int
    """Length of a state with `num_slots` slots, D = `run_size + slot_size·num_slots`."""
    parts: tuple[Part, ...] = ()
    """What comes beside the state, each part with an encoder."""
    num_slots: int = 0
    """S for `state_dim`; 0 leaves an ordinary recurrent policy, without slot machinery."""
    slot_size: int = 0
    """Numbers about each slot, F."""
    num_blueprints: int = 0
    """Number of blueprint indices; index −1 (an empty slot) has its own embedding."""
    unknown: float | None = None
    """The number that says in a state that something is not known; `None`: everything is."""
    described_head: str | None = None
    """The head whose choices are described in every slot by `prospects`, a part of the observation; its parent points
    at slots. `None`: no choices are described."""
    prospect_size: int = 0
    """Numbers about each of those choices in each slot, P; `unknown` says in them, too, what is not known."""
    standardize: bool = False
    """With slots, put all numbers of a state on one scale by the statistics that the network's `standardizer`
    gathers, and the summary of the slots beside them; otherwise states are taken as they are."""

    def __post_init__(self) -> None:
        if self.num_slots < 0 or self.run_size < 0 or self.state_dim < (0 if self.parts else 1):
            raise ValueError(
                f"expected state_dim of at least {self.slot_size} numbers for each of num_slots slots, "
                f"got state_dim={self.state_dim} and num_slots={self.num_slots}"
            )
        if self.num_slots and self.slot_size < 1:
            raise ValueError(f"expected a slot_size of 1 or more where there are slots, got {self.slot_size}")
        pointing = [head.name for head in self.heads if head.points_at_slots]
        if pointing and self.num_slots == 0:
            raise ValueError(f"heads {pointing} point at slots, but num_slots is 0; give slots, or another heads table")
        self._check_described()
        self._check_layers()
        self._check_floors()

    def _check_layers(self) -> None:
        for name, kinds in (("memory", MemoryKind), ("critic_memory", CriticMemory), ("activation", Activation)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name}: expected one of {get_args(kinds)}, got {getattr(self, name)!r}")
        if self.memory == "none" and self.critic_memory == "separate":
            raise ValueError("critic_memory='separate' needs a kind of memory, got memory='none'; give 'lstm' or 'gru'")
        if not 1 <= self.memory_layers <= _MOST_LAYERS:
            raise ValueError(f"memory_layers: expected 1 to {_MOST_LAYERS}, got {self.memory_layers}")
        for name in ("hidden_dim", "head_dim", "slot_dim", "part_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a size of 1 or more, got {getattr(self, name)}")
        for name in ("encoder_layers", "policy_layers", "critic_layers"):
            if any(size < 1 for size in getattr(self, name)):
                raise ValueError(f"{name}: expected sizes of 1 or more, got {getattr(self, name)}")

    def _check_described(self) -> None:
        if self.described_head is None and self.prospect_size == 0:
            return
        heads = {head.name: head for head in self.heads}
        head = heads.get(self.described_head or "")
        if head is None or not head.parent or not heads[head.parent].points_at_slots or self.prospect_size < 1:
            raise ValueError(
                "expected a described_head whose parent points at slots, and a prospect_size of 1 or more; got "
                f"described_head={self.described_head!r} and prospect_size={self.prospect_size}"
            )

    def _check_floors(self) -> None:
        unknown = sorted(set(self.floors) - set(self.heads.names))
        if unknown:
            raise ValueError(f"probability_floor names unknown heads {unknown}; the heads are {list(self.heads.names)}")
        for head in self.heads:
            floor, most = self.floors[head.name], 1.0 / (max(head.num_choices, 1) if head.is_categorical else 2)
            if floor and head.kind == "gaussian":
                raise ValueError(f"head '{head.name}' is Gaussian: it has no choices for a probability_floor")
            if not 0.0 <= floor < most:
                raise ValueError(
                    f"head '{head.name}': expected a probability_floor from 0 to below {most:.3g}, got {floor}"
                )

    @property
    def run_size(self) -> int:
        """Numbers about the run, R."""
        return self.state_dim - self.slot_size * self.num_slots

    @property
    def core_dim(self) -> int:
        """Numbers that the heads read."""
        return self.policy_layers[-1] if self.policy_layers else self.hidden_dim

    @property
    def state_layers(self) -> tuple[int, int]:
        """First sizes of the two parts of a hidden state: layers with outputs, and with cells."""
        if self.memory == "none":
            return 0, 0
        layers = self.memory_layers * (2 if self.critic_memory == "separate" else 1)
        return layers, layers if self.memory == "lstm" else 0

    @property
    def floors(self) -> dict[str, float]:
        """Least probability of an allowed choice of every head."""
        if isinstance(self.probability_floor, Mapping):
            return dict.fromkeys(self.heads.names, 0.0) | dict(self.probability_floor)
        return {head.name: 0.0 if head.kind == "gaussian" else self.probability_floor for head in self.heads}

    def to_json(self) -> dict[str, Any]:
        """This as plain JSON data; :meth:`from_json` reads it back."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.probability_floor, Mapping):
            plain["probability_floor"] = dict(self.probability_floor)
        return plain | {"heads": self.heads.to_json(), "parts": [vars(part) for part in self.parts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: For what it cannot have written; the message names the field.
        """
        return from_plain(cls, data, "the description of a network")
