"""Baseline controllers: wait, random legal, a fixed schedule, and a heuristic."""

from __future__ import annotations

import numpy as np

from esper.actions import ALPHA_TARGETS, BLUEPRINT_NAMES, CURVES, STYLES, TEMPOS, Decision
from esper.lifecycle import Op
from esper.observation import CONTRIBUTION_SCALE
from esper.tamiyo.policy.protocol import RulePolicy, RunView

_FULL = len(ALPHA_TARGETS) - 1
_INSTANT, _FAST = list(TEMPOS).index("instant"), list(TEMPOS).index("fast")


class WaitPolicy(RulePolicy):
    """Never does anything: the host alone."""

    def decide(self, run: RunView) -> Decision:
        """WAIT."""
        return Decision()


class RandomPolicy(RulePolicy):
    """Draws every head uniformly among its allowed choices: the random legal policy."""

    def decide(self, run: RunView) -> Decision:
        """A uniform op, then a uniform slot for it, then the rest."""
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
    """The same growth whatever happens: one blueprint into every slot from the start, blended in, kept.

    Args:
        blueprint: Name of the blueprint; where it does not fit or is too large, the largest allowed one that does.
        training_decisions: Decisions a seed trains in isolation before it is blended in.
    """

    def __init__(self, blueprint: str = "conv", training_decisions: int = 1) -> None:
        super().__init__()
        self.blueprint = BLUEPRINT_NAMES.index(blueprint)
        self.training_decisions = training_decisions

    def decide(self, run: RunView) -> Decision:
        """Advance what has trained long enough, then germinate, then fossilise."""
        for slot in run.slots_allowing(Op.GERMINATE):
            fitting = run.blueprints_for(slot)
            blueprint = self.blueprint if self.blueprint in fitting else fitting[-1]
            run.memory[slot] = run.decision
            return Decision(Op.GERMINATE, slot, blueprint)
        for slot in run.slots_allowing(Op.ADVANCE):
            if run.decision - run.memory[slot] >= self.training_decisions:
                return Decision(Op.ADVANCE, slot, tempo=_FAST, alpha_target=_FULL)
        return run.first_allowed(Op.FOSSILIZE) or Decision()


class HeuristicPolicy(RulePolicy):
    """Fills the slots with a strong kind of block, puts each on probation, and keeps what pays for its rent.

    A seed trains in isolation for ``training_decisions``, is blended in at once, and is judged after ``probation``
    decisions by its counterfactual contribution: above the rent that it costs it is fossilised, else it is pruned and
    the next candidate is tried. A slot whose candidates have all failed stays empty.

    Args:
        candidates: Blueprints in the order in which they are tried.
        training_decisions: Decisions a seed trains in isolation.
        probation: Decisions a seed is held before it is judged.
        margin: Contribution (in points of score, 0.01 is one point) that a seed must bring beyond its rent.
    """

    def __init__(
        self,
        candidates: tuple[str, ...] = ("conv_large", "conv", "depthwise", "gated_mlp", "mlp", "lora"),
        training_decisions: int = 1,
        probation: int = 3,
        margin: float = 0.0,
    ) -> None:
        super().__init__()
        self.candidates = tuple(BLUEPRINT_NAMES.index(name) for name in candidates)
        self.training_decisions = training_decisions
        self.probation = probation
        self.margin = margin

    def decide(self, run: RunView) -> Decision:
        """Let trained seeds in, fill empty slots, then judge the seeds on probation."""
        return self._advance(run) or self._germinate(run) or self._judge(run) or Decision()

    def _advance(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.ADVANCE):
            if run.decision - run.memory[slot] >= self.training_decisions:
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
                    return Decision(Op.GERMINATE, slot, blueprint)
        return None

    def _judge(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.FOSSILIZE):
            net = run.observation.slot(slot, "contribution_net")
            held = run.decision - run.memory[slot] - self.training_decisions
            if net is not None and held >= self.probation:
                keep = net / CONTRIBUTION_SCALE > self.margin
                return Decision(Op.FOSSILIZE if keep else Op.PRUNE, slot, tempo=_INSTANT)
        return None
