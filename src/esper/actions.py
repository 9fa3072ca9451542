"""The action space of growth: the ``HEADS`` table, and one decision as a typed value.

Everything that needs to know the action space (masks, network, environment, command line, docs) reads ``HEADS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
"""The kinds of module that can be germinated; the order is the action space and never changes."""

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
        Head("blueprint", len(BLUEPRINT_NAMES), "slot", {"op": (Op.GERMINATE,)}, BLUEPRINT_NAMES),
        Head("style", len(STYLES), "slot", {"op": (Op.GERMINATE,)}, STYLES),
        Head("tempo", len(TEMPOS), "slot", {"op": _RAMPS}, tuple(TEMPOS)),
        Head("curve", len(CURVES), "slot", {"op": _RAMPS}, CURVES),
        Head("alpha_target", len(ALPHA_TARGETS), "slot", {"op": _SETS_A_TARGET}, tuple(map(str, ALPHA_TARGETS))),
    ]
)
"""The heads of a growth decision. Masks: op ``[O]``, slot ``[O, S]``, blueprint ``[S, 13]``, the rest ``[n]``."""

HEAD_NAMES: tuple[str, ...] = HEADS.names
"""Names of the heads, in the order they are drawn."""


@dataclass(frozen=True)
class Decision:
    """One decision for one network, by index into the ``HEADS`` choices.

    Fields that the op does not use are ignored. ``slot`` counts the slots in the order they were named.
    """

    op: Op = Op.WAIT
    slot: int = 0
    blueprint: int = 0
    style: int = 0
    tempo: int = 0
    curve: int = 0
    alpha_target: int = len(ALPHA_TARGETS) - 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", Op(self.op))
        for head in HEADS[2:]:
            choice = getattr(self, head.name)
            if not 0 <= choice < head.num_choices:
                raise ValueError(
                    f"head '{head.name}' takes a choice from 0 to {head.num_choices - 1}, got {choice}; "
                    f"the choices are {', '.join(head.choices)}"
                )

    @classmethod
    def from_mapping(cls, action: Mapping[str, int]) -> Decision:
        """The decision in a mapping from head name to index (one row of a Dict action); missing heads keep defaults."""
        unknown = sorted(set(action) - set(HEAD_NAMES))
        if unknown:
            raise ValueError(f"unknown action head(s) {unknown}; expected a subset of {list(HEAD_NAMES)}")
        return cls(**{name: int(value) for name, value in action.items()})  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, int]:
        """This decision as a mapping from head name to index."""
        return {name: int(getattr(self, name)) for name in HEAD_NAMES}

    def describe(self, slot_names: tuple[str, ...] | list[str]) -> str:
        """The decision in words, for logs: ``GERMINATE conv (add) in layer2``."""
        if self.op is Op.WAIT:
            return "WAIT"
        where = slot_names[self.slot]
        if self.op is Op.GERMINATE:
            return f"GERMINATE {BLUEPRINT_NAMES[self.blueprint]} ({STYLES[self.style]}) in {where}"
        words = f"{self.op.name} {where}"
        if self.op in _SETS_A_TARGET:
            words += f" to {ALPHA_TARGETS[self.alpha_target]}"
        if self.op in _RAMPS:
            words += f" ({list(TEMPOS)[self.tempo]}, {CURVES[self.curve]})"
        return words
