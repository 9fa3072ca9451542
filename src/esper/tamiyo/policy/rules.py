"""Baseline controllers: wait, random legal, a fixed schedule, and a heuristic."""

from __future__ import annotations

import numpy as np

from esper.actions import ALPHA_TARGETS, BLUEPRINT_NAMES, CURVES, STYLES, TEMPOS, Decision
from esper.lifecycle import Op, Stage
from esper.tamiyo.policy.base import RulePolicy, RunView

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
    """Tries blueprints one after the other and keeps what pays for its rent.

    A seed trains for ``patience`` decisions; then its counterfactual contribution decides: above the rent that it
    costs it is blended in and fossilised, else pruned and another kind is tried. A slot whose candidates have all
    failed stays empty.

    Args:
        candidates: Blueprints in the order in which they are tried.
        patience: Decisions a seed may train before it is judged.
        margin: Contribution (in points of score) that a seed must bring beyond its rent.
    """

    def __init__(
        self,
        candidates: tuple[str, ...] = ("conv_large", "conv", "attention", "gated_mlp", "mlp", "lora"),
        patience: int = 2,
        margin: float = 0.005,
    ) -> None:
        super().__init__()
        self.candidates = tuple(BLUEPRINT_NAMES.index(name) for name in candidates)
        self.patience = patience
        self.margin = margin

    def decide(self, run: RunView) -> Decision:
        """Judge the seeds on probation and in training, then germinate the next candidate."""
        return self._judge_holding(run) or self._judge_training(run) or self._germinate(run) or Decision()

    def _pays(self, run: RunView, slot: int) -> bool | None:
        """Whether the seed brings more than it costs; ``None`` while that is not known."""
        net = run.observation.slot(slot, "contribution_net")
        return None if net is None else net / 5 > self.margin

    def _judge_holding(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.FOSSILIZE):
            pays = self._pays(run, slot)
            if pays is not None:
                return Decision(Op.FOSSILIZE if pays else Op.PRUNE, slot, tempo=_INSTANT)
        return None

    def _judge_training(self, run: RunView) -> Decision | None:
        for slot in run.slots_allowing(Op.ADVANCE):
            age = run.decision - run.memory[slot]
            pays = self._pays(run, slot)
            if pays and age >= 1:
                return Decision(Op.ADVANCE, slot, tempo=_INSTANT, alpha_target=_FULL)
            if pays is False and age > self.patience:
                return Decision(Op.PRUNE, slot)
        return None

    def _germinate(self, run: RunView) -> Decision | None:
        busy = any(run.observation.stage(s) is Stage.TRAINING for s in range(run.observation.num_slots))
        if busy:
            return None
        for slot in run.slots_allowing(Op.GERMINATE):
            tried = run.memory.setdefault(("tried", slot), set())
            fitting = set(run.blueprints_for(slot))
            for blueprint in self.candidates:
                if blueprint in fitting and blueprint not in tried:
                    tried.add(blueprint)
                    run.memory[slot] = run.decision
                    return Decision(Op.GERMINATE, slot, blueprint)
        return None
