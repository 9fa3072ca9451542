"""The governor: it notices that a run diverges and takes it back to where it was still good."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.lifecycle import ACTIVE_STAGES, Stage
from esper.network import optimizer as surgery
from esper.network.growing_network import Event, GrowingNetwork
from esper.network.slot import Slot

WINDOW = 16
"""Number of good losses that make up the running band."""

RUNAWAY = 10.0
"""A seed whose output is this many times as large as its slot's activation has run away."""


@dataclass(frozen=True)
class Snapshot:
    """A state of a run. Nothing in it is shared with the run."""

    model: dict[str, Tensor]
    growth: dict[str, Any]
    optimizer: dict[str, Any] | None


class Governor:
    """Watches one run; rolls model, optimizer and growth back when it has diverged.

    A run has diverged when its training loss, or what it comes to on validation data, is not finite; when a parameter
    of a seed or of the host is not; or when the training loss is far above the running band of good losses:

        loss > median + max(6 σ, 2 |median|, first loss / 2),   σ = 1.4826 · median absolute deviation.

    (A host with trainable parameters that are not finite when the governor is made, such as memory that nothing has
    filled, is not judged by its parameters.)

    Once a decision: ``if governor.check(loss, *validated): governor.roll_back()``, else ``governor.take_snapshot()``.
    The first snapshot is taken when the governor is made.

    Args:
        network: The growing network.
        optimizer: What trains it; ``None`` if there is no state to roll back.
    """

    def __init__(self, network: GrowingNetwork, optimizer: Optimizer | None = None) -> None:
        self.network = network
        self.optimizer = optimizer
        self._first_loss: float | None = None
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._judges_host = self._host_is_finite()
        self.take_snapshot()

    @property
    def limit(self) -> float:
        """The loss above which the run has diverged; infinite before the first good loss."""
        if self._first_loss is None:
            return math.inf
        centre = median(self._losses)
        spread = 1.4826 * median(abs(loss - centre) for loss in self._losses)
        return centre + max(6 * spread, 2 * abs(centre), abs(self._first_loss) / 2)

    def check(self, loss: float, *validated: float) -> bool:
        """Whether the run has diverged. A good loss is remembered.

        Args:
            loss: Mean training loss since the last check.
            validated: Loss and score on validation data; other samples may show what training does not touch.
        """
        healthy = all(map(math.isfinite, (loss, *validated))) and loss <= self.limit and self._weights_are_finite()
        if healthy:
            self._first_loss = loss if self._first_loss is None else self._first_loss
            self._losses.append(loss)
        return not healthy

    def take_snapshot(self) -> None:
        """Remember the present state as good."""
        self.snapshot = self.present()

    def present(self) -> Snapshot:
        """The present state of the run."""
        return Snapshot(
            model=copy.deepcopy(dict(self.network.model.state_dict())),
            growth=self.network.state_dict(),
            optimizer=None if self.optimizer is None else copy.deepcopy(self.optimizer.state_dict()),
        )

    def roll_back(self) -> list[Event]:
        """Go back to the snapshot, prune the culprit if there is one, and make the result the new snapshot.

        The learning rate and its like stay as they are now, and the number of decisions goes on: the scheduler and the
        controller have not gone back. The seed to blame is the first in this list, if any: one that is blended in and
        whose measured output had 10 times the root mean square of its slot's (what it sends back may have broken
        others); one that is not finite while the host is; one whose alpha has moved in this decision.

        Returns:
            What happened to the slots, in order.
        """
        culprit = _find_culprit(self.network)
        identity = None if culprit is None else _identity(self.network.slots[culprit])
        decision = self.network.decision
        self._restore()
        self.network.decision = decision
        events = []
        if culprit is not None and _identity(self.network.slots[culprit]) == identity:
            events.append(self.network.evict(culprit))
        self.take_snapshot()
        return events

    def _weights_are_finite(self) -> bool:
        return self._seeds_are_finite() and (self._host_is_finite() or not self._judges_host)

    def _seeds_are_finite(self) -> bool:
        return _all_finite(self.network.seed_parameters())

    def _host_is_finite(self) -> bool:
        return _all_finite(p for p in self.network.host_parameters() if p.requires_grad)

    def _restore(self) -> None:
        """Make the run what the last good snapshot says."""
        self.restore(self.snapshot)

    def restore(self, snapshot: Snapshot) -> None:
        """Make the run what ``snapshot`` says; the settings of the optimizer's groups stay as they are."""
        self.network.load_state_dict(snapshot.growth)
        self.network.model.load_state_dict(snapshot.model)
        if self.optimizer is not None and snapshot.optimizer is not None:
            _restore_optimizer(self.optimizer, snapshot.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The running band, and the snapshot."""
        return {"first_loss": self._first_loss, "losses": list(self._losses), "snapshot": dict(vars(self.snapshot))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what :meth:`state_dict` saved."""
        self._first_loss = state["first_loss"]
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self.snapshot = Snapshot(**copy.deepcopy(state["snapshot"]))


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of every parameter but keep the groups' settings, such as the learning rate, of now."""
    settings = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    surgery.go_back(optimizer, state)
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)
    optimizer.zero_grad(set_to_none=True)


def _identity(slot: Slot) -> tuple[int, bool]:
    """Tells a seed apart from those before and after it in the same slot."""
    return slot.life.germinations, slot.stage in ACTIVE_STAGES


def _find_culprit(network: GrowingNetwork) -> int | None:
    slots = {i: slot for i, slot in enumerate(network.slots) if slot.stage in ACTIVE_STAGES}
    blended = {i: slot for i, slot in slots.items() if slot.stage is not Stage.TRAINING}
    suspects = [i for i, slot in blended.items() if _has_run_away(slot)]
    if not suspects and _all_finite(network.host_parameters()):
        suspects = [i for i, slot in slots.items() if not _all_finite(slot.parameters())]
    suspects += [i for i, slot in blended.items() if _has_just_moved(slot)]
    return next(iter(suspects), None)


def _has_run_away(slot: Slot) -> bool:
    output, activation = slot.statistics.seed_output_rms, slot.statistics.activation_rms
    if output is None or activation is None or not math.isfinite(activation):
        return False  # where what came in is not finite either, nothing can be told
    return not float(output) <= RUNAWAY * float(activation)


def _has_just_moved(slot: Slot) -> bool:
    return slot.stage is Stage.BLENDING or slot.life.decisions_in_stage == 0


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    checks = [torch.isfinite(t.detach()).all() for t in tensors]
    return not checks or bool(torch.stack([c.cpu() for c in checks]).all())
