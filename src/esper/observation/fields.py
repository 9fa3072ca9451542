"""The two tables of an observation: every number that a controller sees, its range, its meaning and how it is read.

Adding a field is adding one row. The readers stand above the table that uses them; they return the number before it is
clipped, and ``None`` where it is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from esper.lifecycle import ACTIVE_STAGES, EMBARGO_DECISIONS, Stage
from esper.observation.readings import Prospect, RunReading, SlotReading, size_ratio

UNKNOWN = -2.0
"""Encodes a value that is not known; known values lie in [-1, 1]."""

CONTRIBUTION_SCALE = 5.0
"""Contributions are in points of score, mostly within ±0.2; they are encoded times this."""

GAIN_SCALE = 20.0
"""As-if gains of young seeds are a few points at most; they are encoded times this."""

LEAST_GAIN, GAIN_ORDERS = 1e-5, 5
"""The order of an as-if gain is told from here on, over so many powers of ten."""

Encoded = float | None


@dataclass(frozen=True)
class Field:
    """One number of the observation: its name, range of known values, meaning, and how it is read."""

    name: str
    low: float
    high: float
    meaning: str
    read: Callable[..., Encoded]

    def encode(self, *readings: object) -> float:
        """The number itself: ``read`` clipped to the range, or ``UNKNOWN`` for ``None`` and for non-finite values."""
        value = self.read(*readings)
        if value is None or not math.isfinite(value):
            return UNKNOWN
        return min(max(float(value), self.low), self.high)


def _squash(x: float) -> float:
    """[0, ∞) → [0, 1), 1 → 0.5."""
    return x / (1.0 + x) if x < math.inf else 1.0


def _scaled(value: float | None, factor: float) -> Encoded:
    return None if value is None else value * factor


def _log_quotient(a: float | None, b: float | None) -> Encoded:
    """log10(a / b) / 3, unknown unless both are known and positive."""
    if a is None or b is None or not (0 < a < math.inf and 0 < b < math.inf):
        return None
    return (math.log10(a) - math.log10(b)) / 3


# ------------------------------------------------------------------------------------------- about the run


def _progress(run: RunReading) -> Encoded:
    return run.decision / run.horizon if run.horizon else None


def _decisions_left(run: RunReading) -> Encoded:
    return math.log2(1 + max(run.horizon - run.decision, 0)) / 8 if run.horizon else None


def _score_change(run: RunReading) -> Encoded:
    return (run.scores[-1] - run.scores[-2]) * 5 if len(run.scores) >= 2 else None


def _score_trend(run: RunReading) -> Encoded:
    return 5 * (run.scores[-1] - run.scores[-5]) / 4 if len(run.scores) >= 5 else None


def _score_below_best(run: RunReading) -> Encoded:
    return 5 * (max(run.scores) - run.scores[-1]) if run.scores else None


def _score_spread(run: RunReading) -> Encoded:
    return 10 * float(np.std(run.scores[-5:])) if len(run.scores) >= 5 else None


def _latest_loss(losses: Sequence[float]) -> Encoded:
    return _squash(losses[-1]) if losses else None


def _loss_change(losses: Sequence[float]) -> Encoded:
    """log(previous / latest): above 0 when it falls."""
    if len(losses) < 2 or not all(0 < loss < math.inf for loss in losses[-2:]):
        return None
    return math.log(losses[-2]) - math.log(losses[-1])


def _loss_gap(run: RunReading) -> Encoded:
    if not run.train_losses or not run.val_losses:
        return None
    return math.tanh(run.val_losses[-1] - run.train_losses[-1])


def _budget(run: RunReading) -> Encoded:
    return None if run.budget is None else math.log2(1 + run.budget / run.host_params) / 8


def _budget_left(run: RunReading) -> Encoded:
    return 1 - run.added_params / run.budget if run.budget else None


def _learning_rate(run: RunReading) -> Encoded:
    if run.learning_rate is None or run.learning_rate <= 0:
        return None
    return (math.log10(run.learning_rate) + 6) / 6


def _train_samples(run: RunReading) -> Encoded:
    return math.log10(run.train_samples) / 8 if run.train_samples else None


def _slots_active(run: RunReading) -> Encoded:
    return sum(s.stage in ACTIVE_STAGES for s in run.slots) / len(run.slots) if run.slots else None


RUN_FIELDS: tuple[Field, ...] = (
    Field("progress", 0, 1, "decisions taken / horizon", _progress),
    Field("decisions_left", 0, 1, "log2(1 + decisions left) / 8", _decisions_left),
    Field("score", 0, 1, "latest validation score", lambda r: r.scores[-1] if r.scores else None),
    Field("score_best", 0, 1, "best validation score so far", lambda r: max(r.scores, default=None)),
    Field("score_change", -1, 1, "5 × change of the score since the last decision", _score_change),
    Field("score_trend", -1, 1, "5 × mean change per decision over the last 4 decisions", _score_trend),
    Field("score_below_best", 0, 1, "5 × (best score − latest score)", _score_below_best),
    Field("score_spread", 0, 1, "10 × standard deviation of the last 5 scores", _score_spread),
    Field("train_loss", 0, 1, "x / (1 + x) of the mean training loss", lambda r: _latest_loss(r.train_losses)),
    Field("val_loss", 0, 1, "x / (1 + x) of the validation loss", lambda r: _latest_loss(r.val_losses)),
    Field("train_loss_change", -1, 1, "log(previous / latest) training loss", lambda r: _loss_change(r.train_losses)),
    Field("val_loss_change", -1, 1, "log(previous / latest) validation loss", lambda r: _loss_change(r.val_losses)),
    Field("loss_gap", -1, 1, "tanh(validation loss − training loss)", _loss_gap),
    Field("rent", 0, 1, "x / (x + 0.02) of the price of a doubling of parameters", lambda r: r.rent / (r.rent + 0.02)),
    Field("rent_paid", 0, 1, "rent × log2(parameters / host parameters)", lambda r: r.rent * size_ratio(r)),
    Field("size_ratio", 0, 1, "log2(parameters / host parameters) / 6", lambda r: size_ratio(r) / 6),
    Field("budget", 0, 1, "log2(1 + budget / host parameters) / 8; unknown without a cap", _budget),
    Field("budget_left", 0, 1, "share of the budget not yet used; unknown without a cap", _budget_left),
    Field("host_params", 0, 1, "log10(host parameters) / 9", lambda r: math.log10(r.host_params) / 9),
    Field("learning_rate", 0, 1, "(log10(learning rate) + 6) / 6", _learning_rate),
    Field("train_samples", 0, 1, "log10(training samples) / 8", _train_samples),
    Field("chance_score", 0, 1, "score of a constant guess", lambda r: r.chance_score),
    Field("slots_active", 0, 1, "share of slots whose seed is training, blending or on probation", _slots_active),
    Field("rolled_back", 0, 1, "1 if the governor rolled this run back at the last decision", lambda r: r.rolled_back),
)
"""The 24 numbers about the run; each reads a :class:`RunReading`."""

# ------------------------------------------------------------------------------------------- about a slot

SlotReader = Callable[[SlotReading, RunReading], Encoded]


def _is_stage(stage: Stage) -> SlotReader:
    return lambda s, r: s.stage is stage


def _is_style(style: int) -> SlotReader:
    return lambda s, r: None if s.style is None else s.style == style


def _is_kind(kind: str) -> SlotReader:
    return lambda s, r: s.kind == kind


def _share_of_horizon(name: str) -> SlotReader:
    """A count of decisions relative to the horizon, or to 32 decisions where there is none."""

    def read(slot: SlotReading, run: RunReading) -> Encoded:
        count = getattr(slot, name)
        return None if count is None else count / (run.horizon or 32)

    return read


def _embargo_left(slot: SlotReading, run: RunReading) -> Encoded:
    return slot.embargo_left / EMBARGO_DECISIONS


def _seed_params(slot: SlotReading, run: RunReading) -> Encoded:
    return math.log2(1 + slot.seed_params / run.host_params) / 4


def _contribution(slot: SlotReading, run: RunReading) -> Encoded:
    return _scaled(slot.contribution, CONTRIBUTION_SCALE)


def _contribution_change(slot: SlotReading, run: RunReading) -> Encoded:
    if slot.contribution is None or slot.contribution_before is None:
        return None
    return 10 * (slot.contribution - slot.contribution_before)


def _contribution_net(slot: SlotReading, run: RunReading) -> Encoded:
    """Contribution less the rent that removing the seed would save."""
    if slot.contribution is None:
        return None
    total = run.host_params + run.added_params
    return CONTRIBUTION_SCALE * (slot.contribution - run.rent * math.log2(total / (total - slot.seed_params)))


def _seed_gradient(slot: SlotReading, run: RunReading) -> Encoded:
    return _log_quotient(slot.seed_gradient_rms, slot.host_gradient_rms)


def _seed_output(slot: SlotReading, run: RunReading) -> Encoded:
    return _log_quotient(slot.seed_output_rms, slot.activation_rms)


def _activation(slot: SlotReading, run: RunReading) -> Encoded:
    return _log_quotient(slot.activation_rms, 1.0)


def _slot_gradient(slot: SlotReading, run: RunReading) -> Encoded:
    return _log_quotient(slot.slot_gradient_rms, 1e-3)


SLOT_FIELDS: tuple[Field, ...] = (
    *(Field(f"stage_{st.name.lower()}", 0, 1, f"1 if the slot is {st.name}", _is_stage(st)) for st in Stage),
    Field("alpha", 0, 1, "how much of the seed is blended in", lambda s, r: s.alpha),
    Field("alpha_target", 0, 1, "where the alpha ramp ends; unknown for an empty slot", lambda s, r: s.alpha_target),
    Field("ramp_progress", 0, 1, "share of the running ramp done; unknown without one", lambda s, r: s.ramp_progress),
    Field("pruning", 0, 1, "1 if alpha is ramping down to 0 after a prune", lambda s, r: s.pruning),
    Field("time_in_stage", 0, 1, "decisions in this stage / horizon", _share_of_horizon("decisions_in_stage")),
    Field("age", 0, 1, "decisions since germination / horizon", _share_of_horizon("decisions_since_germination")),
    Field("embargo_left", 0, 1, "decisions of cool-down left / its length", _embargo_left),
    Field("style_add", 0, 1, "1 if the seed is blended by adding", _is_style(0)),
    Field("style_multiply", 0, 1, "1 if the seed is blended by multiplying", _is_style(1)),
    Field("style_gate", 0, 1, "1 if the seed is blended through a gate", _is_style(2)),
    Field("seed_params", 0, 1, "log2(1 + seed parameters / host parameters) / 4", _seed_params),
    Field("contribution", -1, 1, "5 × what the seed takes off the loss, in points of score", _contribution),
    Field("contribution_change", -1, 1, "10 × change of contribution since the last decision", _contribution_change),
    Field("contribution_net", -1, 1, "5 × (contribution − rent saved by removing the seed)", _contribution_net),
    Field("contribution_age", 0, 1, "decisions since it was measured / horizon", _share_of_horizon("contribution_age")),
    Field("seed_gradient", -1, 1, "log10(RMS gradient of the seed / of the host) / 3", _seed_gradient),
    Field("seed_output", -1, 1, "log10(RMS output of the seed / activation of the slot) / 3", _seed_output),
    Field("activation", -1, 1, "log10(RMS activation of the slot) / 3", _activation),
    Field("slot_gradient", -1, 1, "log10(1e3 × RMS gradient at the slot's output) / 3", _slot_gradient),
    Field("depth", 0, 1, "place among the slots in the order of execution", lambda s, r: s.depth),
    Field("kind_vector", 0, 1, "1 if the slot carries vectors [N, C]", _is_kind("vector")),
    Field("kind_sequence", 0, 1, "1 if the slot carries sequences [N, L, C]", _is_kind("sequence")),
    Field("kind_image", 0, 1, "1 if the slot carries images [N, C, H, W]", _is_kind("image")),
    Field("channels", 0, 1, "log2(channels) / 12", lambda s, r: math.log2(s.channels) / 12),
    Field("positions", 0, 1, "log2(length, or height × width) / 16", lambda s, r: math.log2(s.positions) / 16),
    Field("affordable_share", 0, 1, "share of blueprints that slot and budget allow", lambda s, r: s.affordable_share),
    Field("germinations", 0, 1, "seeds germinated here so far / 5", lambda s, r: s.germinations / 5),
    Field("prunes", 0, 1, "seeds pruned here so far / 5", lambda s, r: s.prunes / 5),
)
"""The 34 numbers about one slot; each reads a :class:`SlotReading` and its :class:`RunReading`."""

# ------------------------------------------------------------------------------------------- about a prospect


def _prospect_size(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    return math.log2(1 + prospect.params / run.host_params) / 4 if prospect.fits else None


def _prospect_rent(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    total = run.host_params + run.added_params
    return CONTRIBUTION_SCALE * run.rent * math.log2(1 + prospect.params / total) if prospect.fits else None


def _prospect_flops(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    return math.log2(1 + prospect.flops / run.host_flops) / 4 if prospect.fits and run.host_flops else None


def _gain(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    return None if prospect.audition is None else GAIN_SCALE * prospect.audition.gain


def gain_of(order: float) -> float:
    """The as-if gain that the field ``gain_order`` says, in points of score; one of ``LEAST_GAIN`` or less is 0."""
    return LEAST_GAIN * (10 ** (GAIN_ORDERS * order) - 1)


def _gain_order(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    gain = None if prospect.audition is None else prospect.audition.gain
    return None if gain is None else math.log10(max(gain, LEAST_GAIN) / LEAST_GAIN) / GAIN_ORDERS


def _audition_trained(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    return None if prospect.audition is None else prospect.audition.trained / 8


def _audition_age(prospect: Prospect, slot: SlotReading, run: RunReading) -> Encoded:
    return None if prospect.audition is None else prospect.audition.age / (run.horizon or 32)


PROSPECT_FIELDS: tuple[Field, ...] = (
    Field("fits", 0, 1, "1 if the slot can carry the blueprint", lambda p, s, r: p.fits),
    Field("affordable", 0, 1, "1 if it is allowed and the budget pays for it, too", lambda p, s, r: p.affordable),
    Field("params", 0, 1, "log2(1 + its parameters / host parameters) / 4", _prospect_size),
    Field("rent", 0, 1, "5 × the rent that it would cost now", _prospect_rent),
    Field("flops", 0, 1, "log2(1 + its FLOPs / FLOPs of the host) / 4", _prospect_flops),
    Field("gain", -1, 1, "20 × what it would take off the loss, as its latest audition showed", _gain),
    Field("gain_order", 0, 1, "log10(1e5 × that gain) / 5; 0 for none", _gain_order),
    Field("trained", 0, 1, "decisions for which it had trained then / 8", _audition_trained),
    Field("age", 0, 1, "decisions since then / horizon", _audition_age),
    Field("auditioning", 0, 1, "1 if it trains in the slot's nursery now", lambda p, s, r: p.auditioning),
)
"""The numbers about one blueprint in one slot; each reads a :class:`Prospect`, its slot and its run."""

RUN_SIZE = len(RUN_FIELDS)
SLOT_SIZE = len(SLOT_FIELDS)
PROSPECT_SIZE = len(PROSPECT_FIELDS)

assert RUN_SIZE == 24 and SLOT_SIZE == 34, (RUN_SIZE, SLOT_SIZE)
