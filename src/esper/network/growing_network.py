"""GrowingNetwork: one host with its slots. It applies decisions, keeps their state and offers the masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.actions import (
    ALL_BLUEPRINTS,
    ALPHA_TARGETS,
    CURVES,
    HEADS,
    STYLES,
    TEMPOS,
    Decision,
    own_blueprints,
    slot_index,
)
from esper.auditions import Auditions
from esper.lifecycle import Op, Stage, check_legal, is_legal
from esper.network import optimizer as surgery
from esper.network import state as saved_state
from esper.network.blueprints import BLUEPRINTS, SlotSpec, count_flops, count_parameters
from esper.network.grown import plain_copy
from esper.network.host_call import HostCall
from esper.network.isolation import IsolatedGradients
from esper.network.nursery import Nursery, worse_half
from esper.network.placing import find_places, is_of_seed
from esper.network.seed import Seed, plant
from esper.network.slot import Mode, Slot, form_of, number
from esper.network.survey import resolve_slots, survey
from esper.observation import Prospect, SlotReading, SlotState

_HOSTS: WeakSet[nn.Module] = WeakSet()
"""Models that are growing now."""


class BudgetError(ValueError):
    """A seed would need more parameters or FLOPs than the budget leaves."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a slot.

    Args:
        decision: Number of the decision, the first is 0.
        slot: Name of the slot.
        kind: ``"germinated"``, ``"stage"`` (blending, holding or dormant again), ``"pruning"`` (alpha ramps down),
            ``"pruned"`` (the seed is gone) or ``"fossilized"``.
        stage: The stage that the slot is in now.
        blueprint: Name of the seed's blueprint; that of the seed that is gone for ``"pruned"``.
        alpha: How much of the seed is blended in now.
    """

    decision: int
    slot: str
    kind: str
    stage: Stage
    blueprint: str | None
    alpha: float


def check_plain(model: nn.Module) -> None:
    """Raise ValueError if the model, or a part of it, grows or carries seeds."""
    if any(module in _HOSTS for module in model.modules()):
        raise ValueError(
            f"this {type(model).__name__} (or a part of it) is growing already; call remove() on its first "
            "GrowingNetwork, or grow a copy.deepcopy of the model made before"
        )
    if any(is_of_seed(name) for name, _ in model.named_modules()):
        raise ValueError(
            f"this {type(model).__name__} carries seeds, as a copy of a growing model or one from esper.load_grown "
            "does; esper.grown_model(model) gives a plain copy with the seeds built in, and that one can grow"
        )


class GrowingNetwork:
    """A host model that grows in its slots.

    The host's code and its own ``state_dict`` keys stay as they are. A seed is a submodule of the host, registered in a
    leaf (:mod:`esper.network.placing`), and acts through a forward hook, so whatever walks the model's modules and
    parameters sees it. The network knows no training loop; whoever trains the host calls :meth:`step` at every
    decision.

    Args:
        model: The host, any ``nn.Module``.
        slots: Paths of submodules; ``*`` stands for any one part of a path (``"layer*"``, ``"h.*.mlp"``). Their order
            is the order of the slots in masks and decisions.
        example_input: What the model is called with, once, to see what the slots carry: a tensor, a tuple (positional
            arguments) or a mapping (keyword arguments).
        optimizer: Takes the seeds' parameters in and lets them go. ``None``: the caller looks after them.
        param_group: Names the param group that a seed's parameter joins: a function of its name, the parameter and the
            slot's name. ``None``: that of its like in the host (:func:`esper.network.optimizer.place`).
        budget: Cap on added parameters, seeds in every stage counted; ``None`` for no cap. A blueprint can be
            germinated only if its largest style (gate) fits, so that the choice of a style is always free.
        flops_budget: Cap on added FLOPs of a forward pass over one sample of the example's size; ``None`` for no cap.
        blueprints: The blueprints that may be germinated.
        seed: Decides the initial weights of the seeds, together with the slot and the number of seeds it had before.
            Global random states are neither used nor moved.
        causal: Whether sequence slots must not look ahead; ``None`` finds out (:mod:`esper.network.causality`).
        auditions: What auditions in dormant slots before anything grows there; ``None`` for no auditions.

    Raises:
        ValueError: For slots that do not exist, do not run or hold no tensor; a model that grows already; a negative
            budget; unknown blueprints.

    Example:
        >>> host = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> network = GrowingNetwork(host, ["1"], torch.zeros(1, 4))
        >>> germinate = Decision(Op.GERMINATE, slot="1", blueprint="mlp")
        >>> [event.kind for event in network.step(germinate)]
        ['germinated']
        >>> network.slots[0].stage.name, network.added_params
        ('TRAINING', 280)
    """

    def __init__(
        self,
        model: nn.Module,
        slots: Sequence[str],
        example_input: Any,
        *,
        optimizer: Optimizer | None = None,
        param_group: surgery.ParamGroup | None = None,
        budget: int | None = None,
        flops_budget: int | None = None,
        blueprints: Sequence[str] = ALL_BLUEPRINTS,
        seed: int = 0,
        causal: bool | None = None,
        auditions: Auditions | None = None,
    ) -> None:
        self._check_arguments(model, {"parameters": budget, "FLOPs": flops_budget}, seed)
        _check_blueprints(blueprints)
        if auditions is not None and auditions.blueprints is not None:
            _check_blueprints(auditions.blueprints)
        names = resolve_slots(model, slots)
        self.model = model
        self.optimizer = optimizer
        self.budget = budget
        self.flops_budget = flops_budget
        self.seed = seed
        self.auditions = auditions
        self._param_group = param_group
        with surgery.forward_order(model) as self._order:
            sites, self.host_flops = survey(model, names, example_input, causal=causal)
        self._call = HostCall({site.name: site.padding for site in sites})
        self._call.attach(model)
        places = find_places(model, names)
        self.slots = tuple(Slot(site, place, self._call) for site, place in zip(sites, places, strict=True))
        self._gradients = None if optimizer is None else IsolatedGradients(optimizer)
        self.decision = 0
        """Number of decisions taken."""
        self.host_params = sum(p.numel() for p in model.parameters())
        self.host_gradient_rms: Tensor | None = None
        """Root mean square of the host's gradients at the last measured batch, 0-dim."""
        self._allowed = np.array([name in blueprints for name in ALL_BLUEPRINTS])
        self._fits = np.array([[b.fits(slot.spec) for b in BLUEPRINTS.values()] for slot in self.slots])
        self._costs = self._price_list(lambda name, spec: max(count_parameters(name, spec, s) for s in STYLES))
        self._flops = self._price_list(count_flops)
        _HOSTS.add(model)

    @staticmethod
    def _check_arguments(model: nn.Module, budgets: Mapping[str, int | None], seed: int) -> None:
        check_plain(model)
        for what, budget in budgets.items():
            if budget is not None and budget < 0:
                raise ValueError(f"budget must be a number of {what} of 0 or more, or None, got {budget}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")

    def _price_list(self, price: Callable[[str, SlotSpec], int]) -> np.ndarray:
        """The price ``[S, 13]`` of each blueprint in each slot; 0 where it does not fit."""
        costs = np.zeros(self._fits.shape, dtype=np.int64)
        for s, b in zip(*np.nonzero(self._fits), strict=True):
            costs[s, b] = price(ALL_BLUEPRINTS[b], self.slots[s].spec)
        return costs

    # ------------------------------------------------------------------------------------------- what there is

    @property
    def num_slots(self) -> int:
        """Number of slots, S."""
        return len(self.slots)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Paths of the slots."""
        return tuple(slot.name for slot in self.slots)

    @property
    def added_params(self) -> int:
        """Parameters of all seeds that there are, in whatever stage; candidates of auditions do not count."""
        return sum(slot.seed_params for slot in self.slots)

    @property
    def added_flops(self) -> int:
        """FLOPs that all seeds add to a forward pass over one sample of the example's size, in whatever stage."""
        return sum(map(self.slot_flops, range(self.num_slots)))

    def slot_flops(self, slot: int) -> int:
        """FLOPs that the seed in one slot adds; 0 for an empty slot."""
        blueprint = self.slots[slot].life.blueprint
        return int(self._flops[slot, blueprint]) if blueprint >= 0 else 0

    def seed_parameters(self) -> list[nn.Parameter]:
        """The parameters of all seeds; those of candidates are not among them."""
        return [p for slot in self.slots for p in slot.parameters()]

    def host_parameters(self) -> list[nn.Parameter]:
        """The parameters of the model that are no seed's and no candidate's."""
        grown = {id(p) for slot in self.slots for _, p in slot.named_parameters()}
        return [p for p in self.model.parameters() if id(p) not in grown]

    def blueprints_for(self, slot: Slot) -> list[str]:
        """Names of the blueprints that fit a slot and are allowed, whatever the budget says."""
        possible = self._fits[self.slots.index(slot)] & self._allowed
        return [name for name, fits in zip(ALL_BLUEPRINTS, possible, strict=True) if fits]

    def _affordable(self) -> np.ndarray:
        """``[S, 13]``: may be germinated as far as the slot's form, the allowed blueprints and the budget go."""
        possible = self._fits & self._allowed
        if self.budget is not None:
            possible = possible & (self._costs <= self.budget - self.added_params)
        if self.flops_budget is not None:
            possible = possible & (self._flops <= self.flops_budget - self.added_flops)
        return possible

    # ------------------------------------------------------------------------------------------- masks and steps

    def masks(self) -> dict[str, np.ndarray]:
        """What :meth:`step` would accept now, as bool arrays by head.

        Returns:
            op ``[6]``, slot ``[6, S]`` (by op), blueprint ``[S, 13]`` (by slot), style ``[3]``, tempo ``[4]``, curve
            ``[3]``, alpha_target ``[3]``. An op is allowed if some slot accepts it; WAIT always is, and addresses none.
        """
        dormant = np.array([slot.stage is Stage.DORMANT for slot in self.slots])
        blueprint = self._affordable() & dormant[:, None]
        slot: np.ndarray = np.array([[is_legal(op, s.stage, pruning=s.life.pruning) for s in self.slots] for op in Op])
        slot[Op.GERMINATE] &= blueprint.any(axis=1)
        op = np.logical_or.reduce(slot, axis=1)
        op[Op.WAIT] = True
        free = {head.name: np.ones(head.num_choices, dtype=bool) for head in HEADS[3:]}
        return {"op": op, "slot": slot, "blueprint": blueprint, **free}

    def check(self, decision: Decision) -> None:
        """Raise what :meth:`step` would raise for this decision; change nothing.

        Raises:
            IllegalMoveError: If the slot's stage does not accept the op.
            BudgetError: If the blueprint needs more parameters than are left.
            ValueError: If there is no such slot, or the blueprint does not fit it or is not among those allowed.
        """
        if decision.op is Op.WAIT:
            return
        index = slot_index(decision.slot, self.slot_names)
        if not 0 <= index < self.num_slots:
            raise ValueError(f"slot must be from 0 to {self.num_slots - 1}, got {index}")
        slot = self.slots[index]
        check_legal(decision.op, slot.stage, slot=slot.name, pruning=slot.life.pruning)
        if decision.op is Op.GERMINATE:
            self._check_blueprint(index, decision.blueprint)

    def _check_blueprint(self, index: int, blueprint: int) -> None:
        slot, name = self.slots[index], ALL_BLUEPRINTS[blueprint]
        possible = [n for n, ok in zip(ALL_BLUEPRINTS, self._fits[index] & self._allowed, strict=True) if ok]
        if name not in possible:
            why = f"does not fit {slot.spec}" if not self._fits[index, blueprint] else "is not among those allowed"
            raise ValueError(f"blueprint '{name}' {why} (slot '{slot.name}'); expected one of {', '.join(possible)}")
        cost = int(self._costs[index, blueprint])
        if self.budget is not None and cost > self.budget - self.added_params:
            raise BudgetError(
                f"blueprint '{name}' needs {cost} parameters in slot '{slot.name}' (in its largest style), but of the "
                f"budget of {self.budget} only {self.budget - self.added_params} are left"
            )
        flops = int(self._flops[index, blueprint])
        if self.flops_budget is not None and flops > self.flops_budget - self.added_flops:
            raise BudgetError(
                f"blueprint '{name}' needs {flops} FLOPs in slot '{slot.name}', but of the budget of "
                f"{self.flops_budget} FLOPs only {self.flops_budget - self.added_flops} are left"
            )

    def step(self, decision: Decision) -> list[Event]:
        """Apply one decision and let its time pass: ramps move, cool-downs run, ages grow.

        A ramp of n decisions is finished after n steps, the one that began it included: with tempo ``instant`` alpha is
        at its target when this returns. It is called *before* the interval of training that the decision is for.

        Returns:
            What happened, in order.

        Raises:
            ValueError: As :meth:`check` says; nothing has changed then.
        """
        self.check(decision)
        stages, acting = [slot.stage for slot in self.slots], self._acting()
        events = [] if decision.op is Op.WAIT else [self._apply(decision)]
        for index, slot in enumerate(self.slots):
            before = slot.stage
            if slot.pass_time(moved=before is not stages[index]):
                events.append(self._clear(slot))
            elif slot.stage is not before:
                events.append(self._event(slot, "stage"))
        self.decision += 1
        if self.auditions is not None:
            self._hold_auditions(self.auditions, changed=self._acting() != acting)
        self._isolate()
        return events

    def _isolate(self) -> None:
        """Keep the gradients of exactly the isolated seeds and candidates apart."""
        if self._gradients is not None:
            isolated = (slot for slot in self.slots if slot.stage is Stage.TRAINING or slot.is_auditioning)
            self._gradients.hold(p for slot in isolated for _, p in slot.named_parameters())
        for slot in self.slots:
            if slot.nursery is not None and not slot.is_auditioning:
                slot.nursery.zero_grad(set_to_none=True)  # what waits is not trained by what it learned last

    # ------------------------------------------------------------------------------------------- auditions

    def _acting(self) -> list[int]:
        """Which seeds act at their target: when these change, the host that auditions are held for is another one."""
        acts = (Stage.HOLDING, Stage.FOSSILIZED)
        return [slot.life.germinations if slot.stage in acts else 0 for slot in self.slots]

    def _hold_auditions(self, auditions: Auditions, *, changed: bool) -> None:
        """One decision of auditions passes: they end, lose their worse half, and begin where they are due."""
        for index, slot in enumerate(self.slots):
            slot.life.audition_due |= changed
            if slot.stage is not Stage.DORMANT:
                continue
            if slot.is_auditioning:
                slot.life.audition_left -= 1
                if auditions.halving and slot.is_auditioning:
                    self._halve(slot)
            if slot.life.audition_due and not slot.is_auditioning and self.decision > 1:
                self._begin_audition(auditions, index)
            slot.refresh()

    def _halve(self, slot: Slot) -> None:
        assert slot.nursery is not None
        candidates = slot.nursery.seeds
        if candidates.keys() <= slot.life.auditioned.keys():  # where contributions are not measured, all stay
            self._dismiss(slot, worse_half(slot.life.auditioned, candidates))

    def _begin_audition(self, auditions: Auditions, index: int) -> None:
        slot = self.slots[index]
        self.end_audition(index)
        invited = [b for b in np.flatnonzero(self._affordable()[index]) if auditions.invites(ALL_BLUEPRINTS[b])]
        slot.life.audition_due = False
        slot.life.auditions += 1
        if not invited:
            return
        device, dtype = form_of(slot, self.model)
        entropy = (self.seed, index, slot.life.auditions)
        slot.nursery = Nursery(
            {
                int(b): plant(
                    ALL_BLUEPRINTS[b], slot.spec, "add", entropy=(*entropy, int(b)), device=device, dtype=dtype
                )
                for b in invited
            }
        )
        slot.life.audition_left = auditions.decisions
        slot.refresh()
        try:
            self._join_optimizer(slot)
        except BaseException:  # an interrupt, too, must not leave candidates that the optimizer does not know
            self.end_audition(index)
            slot.life.audition_due = True
            raise

    def enter_audition(self, slot: int, blueprint: int, gain: float) -> None:
        """Enter what a candidate would take off the loss, measured now."""
        assert self.auditions is not None
        chosen = self.slots[slot]
        chosen.enter_audition(blueprint, gain, self.auditions.decisions + 1 - chosen.life.audition_left)

    def latest_auditions(self) -> dict[str, dict[str, float]]:
        """By slot and blueprint, what candidates would take off the loss, as measured since the latest decision."""
        found = {
            slot.name: {ALL_BLUEPRINTS[b]: result.gain for b, result in slot.life.auditioned.items() if not result.age}
            for slot in self.slots
        }
        return {name: gains for name, gains in found.items() if gains}

    def end_audition(self, slot: int) -> None:
        """All candidates of a slot go."""
        chosen = self.slots[slot]
        if chosen.nursery is not None:
            self._dismiss(chosen, list(chosen.nursery.seeds))

    def _dismiss(self, slot: Slot, blueprints: Sequence[int]) -> None:
        assert slot.nursery is not None
        for blueprint in blueprints:
            gone = slot.nursery.let_go(blueprint)
            if self.optimizer is not None:
                surgery.leave(self.optimizer, gone.parameters())
        if not slot.nursery.seeds:
            slot.nursery, slot.life.audition_left = None, 0
        slot.refresh()

    def _take_over(self, slot: Slot, blueprint: int, style: int) -> Seed | None:
        """The candidate that a germination takes over as it is, out of the nursery; the others stay in it."""
        if slot.nursery is None or STYLES[style] != "add" or blueprint not in slot.nursery.seeds:
            return None
        return slot.nursery.let_go(blueprint) if slot.nursery.is_finite(blueprint) else None

    def leave_gradients(self) -> None:
        """From now on the gradients of isolated seeds stand in ``.grad`` like all others.

        For a wrapper that averages gradients over processes, which must find them there. Clipping over all parameters
        then feels isolated seeds.
        """
        if self._gradients is not None:
            self._gradients.close()
            self._gradients = None

    def _apply(self, decision: Decision) -> Event:
        slot = self.slots[slot_index(decision.slot, self.slot_names)]
        tempo, curve = list(TEMPOS.values())[decision.tempo], CURVES[decision.curve]
        if decision.op is Op.GERMINATE:
            return self._germinate(slot, decision)
        if decision.op is Op.FOSSILIZE:
            slot.fossilize()
            return self._event(slot, "fossilized")
        if decision.op is not Op.PRUNE:
            slot.ramp_to(ALPHA_TARGETS[decision.alpha_target], tempo, curve)
            return self._event(slot, "stage")
        if slot.stage is Stage.TRAINING:
            return self._clear(slot)
        slot.ramp_to(0.0, tempo, curve, pruning=True)
        return self._event(slot, "pruning")

    def _germinate(self, slot: Slot, decision: Decision) -> Event:
        """The audition of the slot is over: one candidate is taken over as it is, if it is the one, and the others go.

        Otherwise a new seed is planted.
        """
        candidate = self._take_over(slot, decision.blueprint, decision.style)
        self.end_audition(self.slots.index(slot))
        if candidate is not None:
            candidate.requires_grad_(True)
            slot.germinate(candidate, decision.blueprint, decision.style)
            if self.optimizer is not None:
                surgery.rename(self.optimizer, slot.named_parameters())
            return self._event(slot, "germinated")
        return self._plant(slot, decision)

    def _plant(self, slot: Slot, decision: Decision) -> Event:
        blueprint, style = ALL_BLUEPRINTS[decision.blueprint], STYLES[decision.style]
        entropy = (self.seed, self.slots.index(slot), slot.life.germinations)
        device, dtype = form_of(slot, self.model)
        seed = plant(blueprint, slot.spec, style, entropy=entropy, device=device, dtype=dtype)
        before = copy.copy(slot.life)
        try:
            slot.germinate(seed, decision.blueprint, decision.style)
            self._join_optimizer(slot)
        except BaseException:  # an interrupt, too, must not leave a seed that the optimizer does not know
            if self.optimizer is not None:
                surgery.leave(self.optimizer, seed.parameters())
            slot.seed, slot.life = None, before
            slot.refresh()
            raise
        return self._event(slot, "germinated")

    def _join_optimizer(self, slot: Slot) -> None:
        """Let the optimizer train what the slot holds."""
        if self.optimizer is not None:
            named = slot.named_parameters()
            surgery.join(self.optimizer, self.param_groups_for(slot, named), named)

    def param_groups_for(self, slot: Slot, named: Sequence[tuple[str, nn.Parameter]]) -> list[int]:
        """Index of the optimizer's param group that each of these new, named parameters of a slot's seed joins.

        Raises:
            ValueError: If the user's ``param_group`` names none.
        """
        assert self.optimizer is not None
        if self._param_group is not None:
            return [surgery.ask(self.optimizer, self._param_group, name, p, slot.name) for name, p in named]
        return surgery.place(self.optimizer, surgery.nearest(self._order, slot.name), [p for _, p in named])

    def _clear(self, slot: Slot) -> Event:
        """Take the seed out, with its parameters and their optimizer state."""
        blueprint = slot.blueprint
        if self.optimizer is not None:
            surgery.leave(self.optimizer, slot.parameters())
        slot.clear()
        return Event(self.decision, slot.name, "pruned", slot.stage, blueprint, 0.0)

    def evict(self, slot: int) -> Event:
        """Take an undecided seed out at once, whatever its alpha; the cool-down begins. For emergencies.

        Raises:
            IllegalMoveError: If the slot holds no undecided seed.
        """
        chosen = self.slots[slot]
        check_legal(Op.PRUNE, chosen.stage, slot=chosen.name)
        event = self._clear(chosen)
        self._isolate()
        return event

    def keep(self, slot: int) -> Event:
        """Keep an undecided seed for good at once, at the alpha that it has; a ramp ends there. For the end of growth.

        Raises:
            IllegalMoveError: If the slot holds no seed that is blended in and undecided.
        """
        chosen = self.slots[slot]
        if chosen.stage is not Stage.BLENDING or chosen.life.pruning:
            check_legal(Op.FOSSILIZE, chosen.stage, slot=chosen.name, pruning=chosen.life.pruning)
        chosen.life.ramp, chosen.life.alpha_target = None, chosen.alpha
        chosen.fossilize()
        return self._event(chosen, "fossilized")

    def _event(self, slot: Slot, kind: str) -> Event:
        return Event(self.decision, slot.name, kind, slot.stage, slot.blueprint, slot.alpha)

    # ------------------------------------------------------------------------------------------- readings

    def slot_readings(self) -> list[SlotReading]:
        """What is known about every slot, for the observation."""
        host_gradient_rms = number(self.host_gradient_rms)
        affordable = self._affordable()
        return [
            SlotReading(
                **_state_and_statistics(slot),
                kind=slot.spec.kind,
                channels=slot.spec.channels,
                positions=slot.spec.positions,
                depth=slot.depth,
                ramp_progress=None if slot.life.ramp is None else slot.life.ramp.progress,
                seed_params=slot.seed_params,
                host_gradient_rms=host_gradient_rms,
                affordable_share=float(affordable[index].mean()),
                prospects=self._prospects(index, affordable[index]),
            )
            for index, slot in enumerate(self.slots)
        ]

    def _prospects(self, index: int, affordable: np.ndarray) -> list[Prospect]:
        slot = self.slots[index]
        candidates = slot.nursery.seeds if slot.nursery is not None and slot.is_auditioning else {}
        return [
            Prospect(
                fits=bool(self._fits[index, b]),
                affordable=bool(affordable[b]),
                params=int(self._costs[index, b]),
                flops=int(self._flops[index, b]),
                audition=slot.life.auditioned.get(b),
                auditioning=b in candidates,
            )
            for b in range(len(ALL_BLUEPRINTS))
        ]

    @contextmanager
    def measure(self, on: bool = True) -> Iterator[None]:
        """Record activation and gradient statistics of the batch inside; ``measure(False)`` does nothing.

        The block holds the forward and the backward pass (and may hold the optimizer's step), but not the next
        ``zero_grad``: the gradients are read at its end. With several batches inside, the last one counts. A slot that
        runs more than once in a forward pass, other than in the example, is an error.
        """
        if not on:
            yield
            return
        for slot in self.slots:
            slot.measure(True)
        try:
            with self._call.counting_runs(self.model):
                yield
        finally:
            for slot in self.slots:
                slot.measure(False)
        self.host_gradient_rms = self._gradient_rms(self.host_parameters())
        for slot in self.slots:
            slot.statistics.seed_gradient_rms = self._gradient_rms(slot.parameters())

    def _gradient_rms(self, parameters: Sequence[nn.Parameter]) -> Tensor | None:
        """Root mean square over all gradient entries; ``None`` if there are no gradients."""
        found = [p.grad if self._gradients is None else self._gradients.gradient(p) for p in parameters]
        gradients = [gradient for gradient in found if gradient is not None]
        if not gradients:
            return None
        total = sum(g.numel() for g in gradients)
        norms = torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])
        return torch.linalg.vector_norm(norms) / total**0.5

    @contextmanager
    def switched_off(self, slot: int) -> Iterator[None]:
        """Inside, the host runs as if this slot had no seed.

        The host's own running statistics stay as they are: in a host with BatchNorm they are those of the blended
        network, which flatters neither side but is not what the host would have learned alone.
        """
        with self.slots[slot].as_if(Mode.OFF):
            yield

    @contextmanager
    def as_if_blended(self, slot: int, alpha: float | None = None) -> Iterator[None]:
        """Inside, this slot's seed is blended in at ``alpha`` (default: its target, 1 for a seed in TRAINING)."""
        chosen = self.slots[slot]
        if alpha is None:
            alpha = 1.0 if chosen.life.alpha_target is None else chosen.life.alpha_target
        with chosen.as_if(Mode.BLENDED, alpha):
            yield

    # ------------------------------------------------------------------------------------------- taking it away

    def grown_model(self) -> nn.Module:
        """A plain copy of the network as it is now: a deep copy of the host with every seed of alpha > 0 built in.

        It keeps no state, can be trained on and goes through ``torch.export``. Seeds in TRAINING are left out.
        """
        return plain_copy(self.model, self.slots)

    def remove(self) -> None:
        """Take hooks and seeds off the host and out of the optimizer: both are as if the host had never grown.

        This network must not be used any more. Call :meth:`grown_model` first to keep what has grown.
        """
        for slot in self.slots:
            slot.withdraw()
        if self.optimizer is not None:
            surgery.leave(self.optimizer, [p for slot in self.slots for _, p in slot.named_parameters()])
        self.leave_gradients()
        self._call.withdraw()
        _HOSTS.discard(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but the host's weights; ``torch.load(weights_only=True)`` reads it.

        To resume: build model, optimizer and network as at the start, then load *this state first* (it rebuilds the
        seeds and puts their parameters back into the optimizer's groups at their positions), then the model's and the
        optimizer's.
        """
        return {
            "format": saved_state.FORMAT,
            "decision": self.decision,
            "seed": self.seed,
            "host_params": self.host_params,
            "own_blueprints": own_blueprints(),
            "host_gradient_rms": number(self.host_gradient_rms),
            "slots": {slot.name: saved_state.save_slot(slot, self.optimizer) for slot in self.slots},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state_dict` saved. Load this before the optimizer's state.

        Raises:
            ValueError: If the state is of another format or another host; nothing has changed then.
        """
        saved_state.check(state, self.slots, self.host_params)
        saved_state.load_slots(self.slots, state["slots"], self.model, self.optimizer)
        self.decision, self.seed = state["decision"], state["seed"]
        self.host_gradient_rms = saved_state.as_tensor(state["host_gradient_rms"])
        self._isolate()


def _check_blueprints(names: Sequence[str]) -> None:
    if not names or any(name not in BLUEPRINTS for name in names):
        raise ValueError(f"expected some of the blueprints {', '.join(BLUEPRINTS)}; got {list(names)}")


def _state_and_statistics(slot: Slot) -> dict[str, Any]:
    """What the slot itself holds of its reading, by name."""
    state = {field.name: getattr(slot.life, field.name) for field in fields(SlotState)}
    return state | {name: number(value) for name, value in vars(slot.statistics).items()}
