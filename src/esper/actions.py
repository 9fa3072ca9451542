"""The action space of growth: the ``HEADS`` table, and one decision as a typed value.

Everything that needs to know the action space (masks, network, environment, command line, docs) reads ``HEADS``.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper.heads import Head, HeadTable
from esper.lifecycle import Op

BLUEPRINT_NAMES: tuple[str, ...] = (
    "norm",
    "lora",
    "lora_large",
    "mlp",
    "mlp_large",
    "gated_mlp",
    "depthwise",
    "conv",
    "conv_large",
    "bottleneck",
    "dilated",
    "squeeze_excite",
    "attention",
)
"""The kinds of module that come with Esper; the order is the action space and never changes."""

ALL_BLUEPRINTS: list[str] = list(BLUEPRINT_NAMES)
"""Those, and after them what has been registered by :func:`esper.register_blueprint`, in that order."""

STYLES: tuple[str, ...] = ("add", "multiply", "gate")
"""How a seed's output joins the host's (see :mod:`esper.network.slot`)."""

TEMPOS: dict[str, int] = {"instant": 1, "fast": 2, "standard": 4, "slow": 8}
"""Length of an alpha ramp, in decisions."""

CURVES: tuple[str, ...] = ("linear", "cosine", "sigmoid")
"""Shape of an alpha ramp."""

ALPHA_TARGETS: tuple[float, ...] = (0.5, 0.7, 1.0)
"""Where a ramp ends."""

_ADDRESSES_A_SLOT = (Op.GERMINATE, Op.ADVANCE, Op.SET_ALPHA_TARGET, Op.PRUNE, Op.FOSSILIZE)
_RAMPS = (Op.ADVANCE, Op.SET_ALPHA_TARGET, Op.PRUNE)
_SETS_A_TARGET = (Op.ADVANCE, Op.SET_ALPHA_TARGET)

HEADS = HeadTable(
    [
        Head("op", len(Op), choices=tuple(op.name for op in Op)),
        Head("slot", 0, parent="op", used_when={"op": _ADDRESSES_A_SLOT}),
        Head("blueprint", len(ALL_BLUEPRINTS), "slot", {"op": (Op.GERMINATE,)}, tuple(ALL_BLUEPRINTS)),
        Head("style", len(STYLES), "slot", {"op": (Op.GERMINATE,)}, STYLES),
        Head("tempo", len(TEMPOS), "slot", {"op": _RAMPS}, tuple(TEMPOS)),
        Head("curve", len(CURVES), "slot", {"op": _RAMPS}, CURVES),
        Head("alpha_target", len(ALPHA_TARGETS), "slot", {"op": _SETS_A_TARGET}, tuple(map(str, ALPHA_TARGETS))),
    ]
)
"""The heads of a growth decision. Masks: op ``[O]``, slot ``[O, S]``, blueprint ``[S, 13]``, the rest ``[n]``.

Where blueprints have been registered the head has one more choice for each, in the order of :data:`ALL_BLUEPRINTS`."""

HEAD_NAMES: tuple[str, ...] = HEADS.names
"""Names of the heads, in the order they are drawn."""


@dataclass(frozen=True, init=False)
class Decision:
    """One decision for one network. Every choice may be given by name, or by its index into the ``HEADS`` choices.

    Fields that the op does not use are ignored.

    Args:
        op: What to do.
        slot: Path of a slot, or its place among the slots in the order they were named. The name is kept until the
            network, or whoever knows the slots, looks it up.
        blueprint: One of :data:`ALL_BLUEPRINTS`.
        style: One of :data:`STYLES`.
        tempo: One of :data:`TEMPOS`.
        curve: One of :data:`CURVES`.
        alpha_target: One of :data:`ALPHA_TARGETS`, as a float; an int is an index here too.

    Raises:
        ValueError: For a choice that its head does not have; the message gives the choices.

    Example:
        >>> Decision(Op.GERMINATE, slot="layer2", blueprint="norm", style="gate").describe(["layer1", "layer2"])
        'GERMINATE norm (gate) in layer2'
        >>> Decision(Op.ADVANCE, slot=0, tempo="fast", alpha_target=0.7).to_mapping()["alpha_target"]
        1
    """

    op: Op
    slot: int | str
    blueprint: int
    style: int
    tempo: int
    curve: int
    alpha_target: int

    def __init__(
        self,
        op: Op = Op.WAIT,
        slot: int | str = 0,
        blueprint: int | str = 0,
        style: int | str = 0,
        tempo: int | str = 0,
        curve: int | str = 0,
        alpha_target: int | float = ALPHA_TARGETS[-1],
    ) -> None:
        choices = {"blueprint": blueprint, "style": style, "tempo": tempo, "curve": curve, "alpha_target": alpha_target}
        resolved = {name: _index(HEADS.named(name), choice) for name, choice in choices.items()}
        for name, value in {"op": Op(_index(HEADS.named("op"), op)), "slot": slot, **resolved}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, action: Mapping[str, int]) -> Decision:
        """The decision in a mapping from head name to index (one row of a Dict action); missing heads keep defaults."""
        unknown = sorted(set(action) - set(HEAD_NAMES))
        if unknown:
            raise ValueError(f"unknown action head(s) {unknown}; expected a subset of {list(HEAD_NAMES)}")
        return cls(**{name: _whole(name, value) for name, value in action.items()})  # type: ignore[arg-type]

    def to_mapping(self, slot_names: Sequence[str] = ()) -> dict[str, int]:
        """This decision as a mapping from head name to index; a slot's name is looked up among ``slot_names``."""
        choices = {name: getattr(self, name) for name in HEAD_NAMES} | {"slot": slot_index(self.slot, slot_names)}
        return {name: int(choice) for name, choice in choices.items()}

    def describe(self, slot_names: Sequence[str]) -> str:
        """The decision in words, for logs: ``GERMINATE conv (add) in layer2``."""
        if self.op is Op.WAIT:
            return "WAIT"
        where = slot_names[slot_index(self.slot, slot_names)]
        if self.op is Op.GERMINATE:
            return f"GERMINATE {ALL_BLUEPRINTS[self.blueprint]} ({STYLES[self.style]}) in {where}"
        words = f"{self.op.name} {where}"
        if self.op in _SETS_A_TARGET:
            words += f" to {ALPHA_TARGETS[self.alpha_target]}"
        if self.op in _RAMPS:
            words += f" ({list(TEMPOS)[self.tempo]}, {CURVES[self.curve]})"
        return words


def add_blueprint(name: str) -> None:
    """Give the head ``blueprint`` one more choice, the last."""
    ALL_BLUEPRINTS.append(name)
    HEADS.resize("blueprint", tuple(ALL_BLUEPRINTS))


def own_blueprints() -> list[str]:
    """Names of the registered ones, in their order."""
    return ALL_BLUEPRINTS[len(BLUEPRINT_NAMES) :]


def remove_blueprint(name: str) -> None:
    """Take a choice away that :func:`add_blueprint` gave; those after it move up."""
    ALL_BLUEPRINTS.remove(name)
    HEADS.resize("blueprint", tuple(ALL_BLUEPRINTS))


def slot_index(slot: int | str, slot_names: Sequence[str]) -> int:
    """The place of a slot that is given by its name, or by its place, among the slots.

    Raises:
        ValueError: For a name that no slot has; the message gives the nearest names.
    """
    if not isinstance(slot, str):
        return operator.index(slot)
    if not slot_names:
        raise ValueError(f"slot '{slot}' is given by name where the slots' names are not known; give its index")
    return _place(slot, slot_names, what="slot")


def _whole(head: str, choice: Any) -> int:
    """A choice that came as some kind of number, as an int."""
    try:
        index = int(choice)
    except (TypeError, ValueError, OverflowError):
        index = None
    if index is None or index != choice:
        raise ValueError(f"head '{head}' takes the index of a choice, a whole number, got {choice}")
    return index


def _index(head: Head, choice: int | str | float) -> int:
    """The index of a head's choice that is given by name (a target by its value) or by index."""
    if isinstance(choice, (str, float)):
        return _place(str(choice), head.choices, what=head.name)
    index = operator.index(choice)
    if not 0 <= index < head.num_choices:
        raise ValueError(
            f"head '{head.name}' takes a choice from 0 to {head.num_choices - 1}, got {index}; "
            f"the choices are {', '.join(head.choices)}"
        )
    return index


def _place(name: str, names: Sequence[str], *, what: str) -> int:
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"there is no {what} '{name}'; {hint}The choices are {', '.join(names)}")
