"""A slot of one network: its seed, the state of the seed's life, and the forward hook through which the seed acts.

The rules of a seed's life are in :mod:`esper.lifecycle`; a slot only keeps its state. It trusts its caller
(:class:`esper.network.growing_network.GrowingNetwork`) to have checked that a move is legal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.actions import ALL_BLUEPRINTS, STYLES
from esper.lifecycle import EMBARGO_DECISIONS, Stage
from esper.network.alpha import Ramp
from esper.network.blueprints import SlotSpec
from esper.network.host_call import HostCall
from esper.network.nursery import Nursery, older
from esper.network.placing import Place
from esper.network.seed import Seed, straight_through
from esper.network.survey import Site
from esper.observation import Audition, SlotState, SlotStatistics


class Mode(Enum):
    """What a slot's seed does in a forward pass."""

    OFF = 0
    ISOLATED = 1
    """Learns without being seen or felt; skipped where no gradient is wanted."""
    BLENDED = 2


def rms(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Root mean square of a tensor, 0-dim, in float32, outside of any graph."""
    return tensor.detach().float().square().mean().sqrt()


def number(value: Tensor | None) -> float | None:
    """A statistic as a plain number."""
    return None if value is None else float(value)


@dataclass
class Life(SlotState):
    """The state of a slot: everything about it but the seed's weights. Plain values, so that it can be saved."""

    ramp: Ramp | None = None
    auditions: int = 0
    """Auditions held here so far."""
    audition_due: bool = True
    """Whether the host is another one than that of the last audition."""


class Slot:
    """A named place in a host where one seed can grow.

    Attributes:
        name: Path of the submodule whose output is the slot.
        spec: What it carries.
        output: Where in the submodule's output its tensor stands, in words.
        depth: Place among the slots in the order of execution, 0 to 1.
        seed: The seed, or ``None``.
        nursery: What auditions in the slot while it is dormant, or ``None``.
        life: Its state.

    Args:
        site: What the survey found out about the slot.
        place: Where in the host the seed is registered.
        call: What the host is called with.
    """

    def __init__(self, site: Site, place: Place, call: HostCall) -> None:
        self.name = site.name
        self.module = site.module
        self.spec: SlotSpec = site.spec
        self.output = site.port.describe()
        self.depth = site.depth
        self.port = site.port
        self.place = place
        self.padding = site.padding
        self.call = call
        self.dtype = site.dtype
        self.device = site.device
        self.seed: Seed | None = None
        self.nursery: Nursery | None = None
        self._as_grown: int | None = None  # blueprint of the candidate that acts as the seed for a while
        self.life = Life()
        self.statistics: SlotStatistics[Tensor] = SlotStatistics()
        self._mode = Mode.OFF
        self._measuring = False
        self._handle: RemovableHandle | None = None

    def in_copy(self, host: nn.Module, call: HostCall) -> Slot:
        """The same slot of a copy of the host, without a seed; ``call`` is what the copy is called with."""
        twin = copy.copy(self)
        twin.module, twin.call = host.get_submodule(self.name), call
        twin.place = replace(self.place, module=host.get_submodule(self.place.path))
        twin.seed, twin.nursery, twin.life, twin.statistics = None, None, Life(), SlotStatistics()
        twin._mode, twin._measuring, twin._handle = Mode.OFF, False, None
        return twin

    # ------------------------------------------------------------------------------------------- what it holds

    @property
    def stage(self) -> Stage:
        """Where the seed is in its life."""
        return self.life.stage

    @property
    def alpha(self) -> float:
        """How much of the seed is blended in."""
        return self.life.alpha

    @property
    def blueprint(self) -> str | None:
        """Name of the seed's blueprint."""
        return ALL_BLUEPRINTS[self.life.blueprint] if self.life.blueprint >= 0 else None

    @property
    def style(self) -> str | None:
        """Name of the seed's style."""
        return STYLES[self.life.style] if self.life.style is not None else None

    @property
    def seed_params(self) -> int:
        """Number of parameters of the seed; candidates do not count."""
        return sum(p.numel() for p in self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the seed."""
        return [] if self.seed is None else list(self.seed.parameters())

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of seed and candidates, by the names that the host has for them."""
        return self.names_of(self.seed, self.nursery)

    def names_of(self, seed: Seed | None, nursery: Nursery | None) -> list[tuple[str, nn.Parameter]]:
        """The parameters of these, by the names that the host would have for them."""
        return [
            (f"{self.place.path}.{name}" if self.place.path else name, parameter)
            for held, module in self._registered(seed, nursery).items()
            for name, parameter in module.named_parameters(prefix=held)
        ]

    def parameter_name(self, name: str) -> str:
        """The host's name of a parameter of the seed."""
        return f"{self.place.prefix}.{name}"

    def _registered(self, seed: Seed | None, nursery: Nursery | None) -> dict[str, nn.Module]:
        """What the host holds for this slot, by the attribute of the leaf."""
        held = {self.place.name: seed, self.place.nursery: nursery}
        return {name: module for name, module in held.items() if module is not None}

    @property
    def is_auditioning(self) -> bool:
        """Whether an audition runs."""
        return self.nursery is not None and self.life.audition_left > 0

    # ------------------------------------------------------------------------------------------- moves

    def germinate(self, seed: Seed, blueprint: int, style: int) -> None:
        """DORMANT → TRAINING."""
        self.seed = seed
        self.life.blueprint, self.life.style = blueprint, style
        self.life.alpha_target = None
        self.life.germinations += 1
        self.life.decisions_since_germination = 0
        self.life.contribution = self.life.contribution_before = self.life.contribution_age = None
        self._enter(Stage.TRAINING)

    def ramp_to(self, target: float, decisions: int, curve: str, *, pruning: bool = False) -> None:
        """TRAINING, HOLDING or BLENDING → BLENDING towards ``target``."""
        self.life.ramp = Ramp(self.life.alpha, target, decisions, curve)
        self.life.alpha_target = target
        self.life.pruning = pruning
        if self.life.stage is not Stage.BLENDING:
            self._enter(Stage.BLENDING)

    def fossilize(self) -> None:
        """HOLDING → FOSSILIZED: kept for good at the alpha it has."""
        self._enter(Stage.FOSSILIZED)

    def clear(self) -> None:
        """The seed goes and the cool-down begins: → EMBARGOED. Its parameters must have left the optimizer."""
        old = self.life
        self.seed = None
        self.statistics = SlotStatistics(self.statistics.activation_rms, self.statistics.slot_gradient_rms)
        self.life = Life(
            germinations=old.germinations,
            prunes=old.prunes + 1,
            embargo_left=EMBARGO_DECISIONS,
            auditions=old.auditions,
            auditioned=old.auditioned,
        )
        self._enter(Stage.EMBARGOED)

    def pass_time(self, *, moved: bool) -> bool:
        """One decision passes; ``moved`` says that the slot changed its stage in it already.

        Returns:
            Whether a ramp-down to 0 has ended, so that the seed is due to be cleared.
        """
        life = self.life
        life.decisions_in_stage += not moved
        if life.contribution_age is not None:
            life.contribution_age += 1
        life.auditioned = older(life.auditioned)
        if life.decisions_since_germination is not None and not (moved and life.stage is Stage.TRAINING):
            life.decisions_since_germination += 1
        if life.stage is Stage.EMBARGOED and not moved:
            life.embargo_left -= 1
            if life.embargo_left == 0:
                self._enter(Stage.DORMANT)
        return life.ramp is not None and self._move_alpha(life.ramp.after_one_decision())

    def _move_alpha(self, ramp: Ramp) -> bool:
        self.life.ramp = ramp
        self.life.alpha = ramp.alpha
        self._write_alpha(ramp.alpha)
        if ramp.finished and not self.life.pruning:
            self.life.ramp = None
            self._enter(Stage.HOLDING)
        return ramp.finished and self.life.pruning

    def _enter(self, stage: Stage) -> None:
        self.life.stage = stage
        self.life.decisions_in_stage = 0
        self.refresh()

    def _write_alpha(self, alpha: float) -> None:
        if self.seed is not None:
            self.seed.alpha.fill_(alpha)
            self.seed.whole = alpha == 1 and self.life.stage is Stage.FOSSILIZED

    # ------------------------------------------------------------------------------------------- the hook

    def refresh(self) -> None:
        """Make host and hook agree with the state. A slot without a seed has no hook at all, so it costs nothing."""
        self._write_alpha(self.life.alpha)
        self.place.hold(self._registered(self.seed, self.nursery))
        if self.nursery is not None:
            self.nursery.requires_grad_(self.is_auditioning)
        if self.seed is None:
            self._mode = Mode.ISOLATED if self.is_auditioning else Mode.OFF
        else:
            self._mode = Mode.ISOLATED if self.life.stage is Stage.TRAINING else Mode.BLENDED
        wanted = self.seed is not None or self.is_auditioning or self._measuring
        if wanted and self._handle is None:
            self._handle = self.module.register_forward_hook(self._hook)
        elif not wanted:
            self._unhook()

    def withdraw(self) -> None:
        """Take hook and seed off the host, which is then as it was before it grew; :meth:`refresh` brings them back."""
        self.place.hold({})
        self._unhook()

    def _unhook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        mode = self._mode
        if mode is Mode.ISOLATED and not torch.is_grad_enabled():
            mode = Mode.OFF
        if mode is Mode.OFF and not self._measuring:
            return None
        self.call.note_run(self.name)
        h = self.port.read(output)
        if h.dim() != len(self.spec.spatial) + 2 or h.shape[self.spec.channel_dim] != self.spec.channels:
            raise ValueError(
                f"slot '{self.name}' carried {self.spec.kind}s of {self.spec.channels} channels in the example but now "
                f"outputs {tuple(h.shape)}; a slot must keep its kind and its number of channels"
            )
        joined = self._join(h, mode)
        return None if joined is h else self.port.write(output, joined)

    def _join(self, h: Tensor, mode: Mode) -> Tensor:
        effect: Tensor | None = None
        if mode is Mode.ISOLATED and self.seed is None and self.nursery is not None:
            joined = h
            for candidate in self.nursery.effects(h.detach(), self._keep(h, self.nursery)):
                joined = straight_through(joined, candidate)
        elif mode is Mode.OFF or self.seed is None:
            # A hook on a view misses its gradient where the host goes on in place; a copy does not.
            joined = h.clone() if self._measuring and h.requires_grad else h
        elif mode is Mode.ISOLATED:
            effect = self.seed.effect(h.detach(), self._keep(h, self.seed))
            joined = straight_through(h, effect)
        else:
            effect = self.seed.effect(h, self._keep(h, self.seed))
            joined = self.seed.mix(h, effect)
        if self._measuring:
            self._record(h, effect, joined)
        return joined

    def _keep(self, h: Tensor, acting: Seed | Nursery) -> Tensor | None:
        """The positions that what acts here may mix; ``None`` for all."""
        return self.call.positions_to_mix(h, self.padding) if acting.mixes_positions else None

    # ------------------------------------------------------------------------------------------- measuring

    def measure(self, on: bool) -> None:
        """Start or stop recording statistics of the batches that pass."""
        self._measuring = on
        self.refresh()

    def _record(self, h: Tensor, effect: Tensor | None, joined: Tensor) -> None:
        self.statistics.activation_rms = rms(h)
        if effect is not None:
            self.statistics.seed_output_rms = rms(effect)
        if joined.requires_grad:
            joined.register_hook(self._record_gradient)

    def _record_gradient(self, grad: Tensor) -> None:
        self.statistics.slot_gradient_rms = rms(grad)

    def enter_contribution(self, value: float) -> None:
        """Enter a contribution that was measured now."""
        self.life.contribution_before = self.life.contribution
        self.life.contribution = value
        self.life.contribution_age = 0

    def enter_audition(self, blueprint: int, gain: float, trained: int) -> None:
        """Enter what a candidate would take off the loss, measured now."""
        self.life.auditioned = {**self.life.auditioned, blueprint: Audition(gain, trained)}

    # ------------------------------------------------------------------------------------------- as if

    @contextmanager
    def as_if(self, mode: Mode, alpha: float | None = None) -> Iterator[None]:
        """For a while the seed acts in another mode, at another alpha; the state stays as it is."""
        before = self._mode
        self._mode = mode
        if alpha is not None:
            self._write_alpha(alpha)
        try:
            yield
        finally:
            self._mode = before
            self._write_alpha(self.life.alpha)

    @contextmanager
    def as_if_grown(self, blueprint: int) -> Iterator[None]:
        """For a while the candidate of this blueprint acts as a seed at alpha 1; the state stays as it is."""
        assert self.seed is None and self.nursery is not None
        self.seed, self._as_grown = self.nursery.seeds[blueprint], blueprint
        try:
            with self.as_if(Mode.BLENDED, 1.0):
                yield
        finally:
            self.seed = self._as_grown = None

    @contextmanager
    def acting_as(self, other: Slot) -> Iterator[None]:
        """For a while the seed acts in the mode and at the alpha in which that of ``other``, one alike, acts now."""
        if other._as_grown is not None:
            with self.as_if_grown(other._as_grown):
                yield
            return
        with self.as_if(other._mode, None if other.seed is None else float(other.seed.alpha)):
            yield


def form_of(slot: Slot, model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a new seed: those of the host's nearest parameter, as they are now.

    A model may have moved since the example, and under autocast activations are of another dtype than parameters. The
    slot's own submodule comes first, then what it stands in. A host without parameters has those of the slot's output.
    """
    path = slot.name
    while True:
        for parameter in model.get_submodule(path).parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        if not path:
            return slot.device, slot.dtype
        path = path.rpartition(".")[0]
