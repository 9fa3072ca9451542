"""Controllers written by hand: wait, random legal, a fixed schedule, a heuristic, and one that holds auditions."""

from __future__ import annotations

import math

import numpy as np

from esper.actions import ALL_BLUEPRINTS, ALPHA_TARGETS, CURVES, STYLES, TEMPOS, Decision, own_blueprints
from esper.auditions import Auditions
from esper.lifecycle import Op, Stage
from esper.observation import CONTRIBUTION_SCALE, gain_of
from esper.tamiyo.policy.protocol import RulePolicy, RunView

_FULL = len(ALPHA_TARGETS) - 1
_INSTANT, _FAST = list(TEMPOS).index("instant"), list(TEMPOS).index("fast")


class WaitPolicy(RulePolicy):
    """Never does anything: the host alone."""

    def decide(self, run: RunView) -> Decision:
        """WAIT."""
        run.reason = "this rule never grows anything"
        return Decision()


class RandomPolicy(RulePolicy):
    """Draws every head uniformly among its allowed choices: the random legal policy."""

    def decide(self, run: RunView) -> Decision:
        """A uniform op, then a uniform slot for it, then the rest."""
        run.reason = "drawn at random among what is allowed"
        draw = lambda mask: int(run.rng.choice(np.flatnonzero(mask)))  # noqa: E731
        op = Op(draw(run.masks["op"]))
        slot = draw(run.masks["slot"][op]) if op is not Op.WAIT else 0
        return Decision(
            op,
            slot,
            draw(run.masks["blueprint"][slot]) if op is Op.GERMINATE else 0,
            *(int(run.rng.integers(len(choices))) for choices in (STYLES, TEMPOS, CURVES, ALPHA_TARGETS)),
        )


class FixedSchedulePolicy(RulePolicy):
    """The same growth whatever happens: one blueprint into every slot, blended in, kept.

    Args:
        blueprint: Name of the blueprint; where it does not fit or is too large, the largest allowed one that does.
        training_decisions: Decisions a seed trains in isolation before it is blended in.
        start: Share of the run, from 0 to below 1, after which slots are filled. What comes later costs less compute.

    Raises:
        ValueError: For another ``start``; while it decides, for one above 0 in a run of unknown length.
    """

    def __init__(self, blueprint: str = "conv", training_decisions: int = 1, start: float = 0.0) -> None:
        super().__init__()
        if not 0 <= start < 1:
            raise ValueError(f"start: expected a share of the run from 0 to below 1, got {start}")
        self.blueprint = ALL_BLUEPRINTS.index(blueprint)
        self.training_decisions = training_decisions
        self.start = start

    def decide(self, run: RunView) -> Decision:
        """Advance what has trained long enough, then germinate, then fossilise."""
        if self._too_early(run):
            run.reason = f"this schedule begins after {self.start:.0%} of the run"
            return Decision()
        for slot in run.slots_allowing(Op.GERMINATE):
            fitting = run.blueprints_for(slot)
            blueprint = self.blueprint if self.blueprint in fitting else fitting[-1]
            run.memory[slot] = run.decision
            run.reason = "the slot is empty"
            return Decision(Op.GERMINATE, slot, blueprint)
        for slot in run.slots_allowing(Op.ADVANCE):
            if run.decision - run.memory[slot] >= self.training_decisions:
                run.reason = _trained(self.training_decisions)
                return Decision(Op.ADVANCE, slot, tempo=_FAST, alpha_target=_FULL)
        run.reason = "this rule keeps every seed"
        return run.first_allowed(Op.FOSSILIZE) or _nothing_to_do(run)

    def _too_early(self, run: RunView) -> bool:
        if self.start == 0:
            return False
        progress = run.observation["progress"]
        if progress is None:
            raise ValueError(
                f"start={self.start} is a share of the run, whose length nobody has said: give Growth its horizon"
            )
        return progress < self.start - 1e-6  # what is observed is rounded


_FROM_THE_LARGEST = ("conv_large", "conv", "depthwise", "gated_mlp", "mlp", "lora")


class HeuristicPolicy(RulePolicy):
    """Fills the slots with a strong kind of block, puts each on probation, and keeps what pays for its rent.

    A seed trains in isolation for ``training_decisions``, is blended in at once, and is judged after ``probation``
    decisions by its counterfactual contribution: above the rent that it costs it is fossilised, else it is pruned and
    the next candidate is tried. A slot whose candidates have all failed stays empty.

    Args:
        candidates: Blueprints in the order in which they are tried; by default those that have been registered by
            :func:`esper.register_blueprint`, and then six kinds from the largest on.
        training_decisions: Decisions a seed trains in isolation.
        probation: Decisions a seed is held before it is judged.
        margin: Contribution (in points of score, 0.01 is one point) that a seed must bring beyond its rent.
    """

    def __init__(
        self,
        candidates: tuple[str, ...] | None = None,
        training_decisions: int = 1,
        probation: int = 3,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        names = (*own_blueprints(), *_FROM_THE_LARGEST) if candidates is None else candidates
        self.candidates = tuple(ALL_BLUEPRINTS.index(name) for name in names)
        self.training_decisions = training_decisions
        self.probation = probation
        self.margin = margin

    def decide(self, run: RunView) -> Decision:
        """Let trained seeds in, fill empty slots, then judge the seeds on probation."""
        return self._advance(run) or self._germinate(run) or self._judge(run) or _nothing_to_do(run)

    def _advance(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.ADVANCE):
            if run.decision - run.memory[slot] >= self.training_decisions:
                run.reason = _trained(self.training_decisions)
                return Decision(Op.ADVANCE, slot, tempo=_INSTANT, alpha_target=_FULL)
        return None

    def _germinate(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.GERMINATE):
            tried = run.memory.setdefault(("tried", slot), set())
            fitting = set(run.blueprints_for(slot))
            for blueprint in self.candidates:
                if blueprint in fitting and blueprint not in tried:
                    tried.add(blueprint)
                    run.memory[slot] = run.decision
                    run.reason = "the first candidate that fits here" if len(tried) == 1 else "the next candidate here"
                    return Decision(Op.GERMINATE, slot, blueprint)
        return None

    def _judge(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.FOSSILIZE):
            net = run.observation.slot(slot, "contribution_net")
            held = run.decision - run.memory[slot] - self.training_decisions
            if net is not None and held >= self.probation:
                keep = net / CONTRIBUTION_SCALE > self.margin
                run.reason = _judged(run, slot, keep=keep, margin=self.margin)
                return Decision(Op.FOSSILIZE if keep else Op.PRUNE, slot, tempo=_INSTANT)
        return None


class AuditionPolicy(RulePolicy):
    """Lets kinds of seeds audition, grows the one that promises most, and asks again on the network that comes of it.

    What a candidate would take off the loss after some decisions in isolation is a small share q of the missing points
    m; what it takes off once it is blended in and trains on is more, by a factor that differs between tasks but hardly
    between the seeds of one run. So a candidate is worth

        m · (1 − (1 − q)^n) − rent,

    as if it took its share n times over, and n is read off the seeds of this run that have been grown already. The best
    candidate of all slots is germinated if it is worth more than nothing, blended in at once, and judged by its
    contribution after ``probation`` decisions.

    Args:
        compounding: n before anything has been grown.
        probation: Decisions a seed is held before it is judged.
        last_decisions: Decisions at the end of the run in which nothing is germinated any more.
    """

    auditions = Auditions()

    def __init__(self, compounding: float = 8.0, probation: int = 3, last_decisions: int = 5) -> None:
        super().__init__()
        self.compounding = compounding
        self.probation = probation
        self.last_decisions = last_decisions

    def decide(self, run: RunView) -> Decision:
        """Let in what has been chosen, judge what has been held, and choose when all auditions are over."""
        return self._advance(run) or self._judge(run) or self._germinate(run) or _nothing_to_do(run)

    def _advance(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.ADVANCE):
            if run.observation.stage(slot) is Stage.TRAINING:
                run.reason = "it was chosen by its audition, in which it has trained"
                return Decision(Op.ADVANCE, slot, tempo=_INSTANT, alpha_target=_FULL)
        return None

    def _judge(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.FOSSILIZE):
            net = run.observation.slot(slot, "contribution_net")
            begun, _ = run.memory[slot]
            if net is not None and run.decision - begun > self.probation:
                run.reason = _judged(run, slot, keep=net > 0)
                return Decision(Op.FOSSILIZE if net > 0 else Op.PRUNE, slot, tempo=_INSTANT)
        return None

    def _germinate(self, run: RunView) -> Decision | None:
        times = self._times(run)
        left = run.observation["decisions_left"]
        if left is not None and 2 ** (8 * left) - 1 <= self.last_decisions:
            return None
        choices = [(s, b) for s in run.slots_allowing(Op.GERMINATE) for b in run.blueprints_for(s)]
        if any(run.observation.prospect(slot, blueprint, "auditioning") for slot, blueprint in choices):
            return None
        tried = run.memory.setdefault("tried", set())
        worths = {choice: self._worth(run, *choice, times) for choice in choices if choice not in tried}
        best = max(worths, key=lambda choice: worths[choice], default=None)
        if best is None or worths[best] <= 0:
            return None
        tried.add(best)
        run.memory[best[0]] = (run.decision, self._share(run, *best))
        run.reason = (
            f"its audition promises {100 * worths[best]:+.1f} points beyond its rent, the most of "
            f"{len(worths)} candidates"
        )
        return Decision(Op.GERMINATE, *best)

    def _share(self, run: RunView, slot: int, blueprint: int) -> float:
        """Share of the missing points that a candidate would take, as it is."""
        order, missing = run.observation.prospect(slot, blueprint, "gain_order"), self._missing(run)
        return 0.0 if order is None or missing <= 0 else min(gain_of(order) / missing, 0.99)

    def _worth(self, run: RunView, slot: int, blueprint: int, times: float) -> float:
        rent = run.observation.prospect(slot, blueprint, "rent") or 0.0
        share = self._share(run, slot, blueprint)
        return self._missing(run) * (1 - (1 - share) ** times) - rent / CONTRIBUTION_SCALE

    def _missing(self, run: RunView) -> float:
        return 1 - (run.observation["score"] or 0.0)

    def _times(self, run: RunView) -> float:
        """How many times over the seeds of this run have taken the share that they showed when they were isolated."""
        known = run.memory.setdefault("times", {})
        for slot in run.slots_allowing(Op.FOSSILIZE):
            contribution = run.observation.slot(slot, "contribution")
            begun, share = run.memory[slot]
            if contribution is None or share <= 0:
                continue
            contribution /= CONTRIBUTION_SCALE
            taken = min(max(contribution / (self._missing(run) + contribution), 0.0), 0.99) if contribution > 0 else 0.0
            known[begun] = math.log(1 - taken) / math.log(1 - share)
        return float(np.mean(list(known.values()))) if known else self.compounding


# ---------------------------------------------------------------------- reasons in words


def _nothing_to_do(run: RunView) -> Decision:
    run.reason = "nothing is due"
    return Decision()


def _trained(decisions: int) -> str:
    return f"it has trained in isolation for {decisions} decision{'s' * (decisions > 1)}"


def _judged(run: RunView, slot: int, *, keep: bool, margin: float = 0.0) -> str:
    """How the contribution of a seed stands to its rent, in points of score."""
    seen = run.observation.slot(slot, "contribution") or 0.0
    bound = {1.0: "at least ", -1.0: "at most "}.get(seen, "")  # what is observed goes no further
    required = f"{100 * margin:.1f} beyond " if margin else ""
    return (
        f"contribution {bound}{100 * seen / CONTRIBUTION_SCALE:+.1f} points, {'above' if keep else 'not above'} "
        f"{required}its rent of {100 * run.rent_of(slot):.1f}"
    )
