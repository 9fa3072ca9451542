"""Everything there is to say about one growth, in one record: summary, JSON, figure and report are made of it alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from esper.files import from_plain
from esper.growth.step import Step
from esper.growth.verdict import Compute, Control, Verdict, points, reach
from esper.observation import doublings
from esper.record import GrowthRecord, SlotState, told

KEPT, PRUNED = "kept", "pruned"


@dataclass
class SeedLife:
    """One seed from germination on."""

    slot: str
    blueprint: str
    germinated: int
    """Number of the step that germinated it."""
    why_germinated: str = ""
    """What the policy said, in words."""
    ended: int | None = None
    """Number of the step that pruned it or kept it for good."""
    outcome: str = ""
    """``kept``, ``pruned``, or the stage in which it is undecided."""
    why_ended: str = ""
    """What the policy, or the judgement at the end of growth, said in words."""
    contribution: float | None = None
    """As measured last, in points of score (0.01 is one point)."""
    params: int = 0
    """Of the network as it is; 0 where it is gone."""
    flops: int = 0
    """Of a forward pass over one sample; 0 where it is gone."""

    @property
    def fate(self) -> str:
        """What became of it, and when."""
        return self.outcome + (f" at {self.ended}" if self.ended is not None else "")

    @property
    def contributed(self) -> str:
        """Its contribution in words."""
        return "" if self.contribution is None else points(self.contribution)


@dataclass(frozen=True)
class GrowthResult:
    """One growth: what was measured, decided and grown, what it cost, and why.

    ``growth.result()`` gives it; ``esper grow`` writes it, and ``esper report`` reads it. :meth:`summary
    <esper.growth.Growth.summary>`, figure and page show no number that is not from here.
    """

    task: str
    policy: str
    rent: float
    budget: int | None
    flops_budget: int | None
    host_params: int
    added_params: int
    """Parameters of the seeds in the network: in what ``growth.grown_model()`` gives."""
    host_flops: int
    """Of a forward pass over one sample."""
    added_flops: int
    slots: dict[str, str]
    """Slot → where in the output of its submodule the tensor stands, in words."""
    seeds: list[SeedLife]
    """All that there were, in the order of germination."""
    steps: list[Step]
    saw: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    """What the policy saw at each decision: ``the run``, or the name of a slot → name of a number → its values, as the
    page on observations encodes them; ``None`` where one was not known."""
    measure: str = "score"
    """What the score is: ``accuracy``, ``R²``, or just ``score``."""
    finished: bool = False
    """Whether growth has come to its end, so that nothing is undecided."""
    horizon: int | None = None
    control: Control | None = None
    """``None`` where the host alone was not trained."""
    compute: Compute | None = None
    """``None`` where the number of samples is not known."""

    # ------------------------------------------------------------------ numbers

    @property
    def score(self) -> float:
        """Of the network at the end, on validation data; NaN before the first step."""
        return self.steps[-1].score if self.steps else math.nan

    @property
    def rent_paid(self) -> float:
        """What the network pays for its added parameters, in points of score."""
        return self.rent * doublings(self.host_params, self.added_params)

    @property
    def J(self) -> float:
        """The objective: score − rent · log2(parameters / host parameters)."""
        return self.score - self.rent_paid

    @property
    def kept(self) -> list[SeedLife]:
        """The seeds in the network, the one that contributes most first."""
        inside = [seed for seed in self.seeds if seed.params]
        return sorted(inside, key=lambda seed: -(seed.contribution or 0.0))

    @property
    def decisive(self) -> SeedLife | None:
        """The seed in the network that contributes most, if that is known."""
        return next((seed for seed in self.kept if seed.contribution is not None), None)

    @property
    def verdict(self) -> Verdict:
        """Whether it was worth it, as far as that can be told."""
        return reach(self)

    # ------------------------------------------------------------------ words

    def told(self, score: float) -> str:
        """A score in words."""
        return told(score, self.measure)

    def facts(self) -> dict[str, str]:
        """What a reader wants to know first, label → text: the same in the summary and in the report."""
        budget = "" if self.budget is None else f", budget {self.budget:,}"
        flops = "" if self.flops_budget is None else f", budget {self.flops_budget:,}"
        facts = {}
        if self.steps:
            first, last = self.steps[0], self.steps[-1]
            at, end = f"at step {first.decision}", f"at step {last.decision}"
            facts["Verdict"] = self.verdict.words
            reasons = [f"{seed.blueprint} in {seed.slot} ({seed.why_ended})" for seed in self.kept if seed.why_ended]
            if reasons:
                facts["Kept because"] = "; ".join(reasons)
            facts["Score"] = f"{self.told(first.score)} {at} → {self.told(last.score)} {end}"
            facts["Loss"] = f"{first.loss:.4g} {at} → {last.loss:.4g} {end}"
            facts["J"] = f"{self.J:.3f}, the score less {self.rent_paid:.3f} rent" + self._host_J()
        facts["Parameters"] = f"host {self.host_params:,}, added {self.added_params:,}{budget}"
        facts["FLOPs a sample"] = f"host {self.host_flops:,}, added {self.added_flops:,}{flops}"
        facts["Rent"] = (
            f"{self.rent:g}: a doubling of the parameters must bring {100 * self.rent:g} points of score, of the 100 "
            "that lead from a useless network to a perfect one"
        )
        if self.compute is not None:
            facts["Compute"] = str(self.compute)
        return facts | self._notes()

    def _host_J(self) -> str:
        host = self.verdict.host_J
        return "" if host is None else f"; of the host alone {host:.3f}"

    def _notes(self) -> dict[str, str]:
        notes = {}
        inside = [f"{name}: {output}" for name, output in self.slots.items() if output != "output"]
        if inside:
            notes["The tensor that grows in a slot"] = ", ".join(inside)
        if self.steps:
            seconds, total = sum(s.contribution_seconds for s in self.steps), sum(s.seconds for s in self.steps)
            extra = sum(s.evaluations - 1 for s in self.steps)
            share = f" ({seconds / total:.0%} of the run's {total:.1f} s)" if total > 0 else ""
            notes["Contributions"] = f"{extra} extra evaluations, {seconds:.1f} s{share}"
        if len(self.steps) > 1 and max(step.score for step in self.steps) <= 0:
            notes["Beware"] = (
                "the score never rose above 0, where a constant guess is; is it a share, higher being better?"
            )
        rollbacks = [str(step.decision) for step in self.steps if step.rolled_back]
        if rollbacks:
            notes["Rolled back by the governor"] = f"at step {', '.join(rollbacks)}"
        return notes

    # ------------------------------------------------------------------ forms

    def figure_record(self) -> GrowthRecord:
        """What its picture is drawn from.

        Raises:
            ValueError: Before the second step, when there is nothing to draw.
        """
        if len(self.steps) < 2:
            raise ValueError(f"a picture needs two steps of growth or more, got {len(self.steps)}")
        last = self.steps[-1].decision
        judged = {seed.slot: seed.outcome for seed in self.seeds if seed.ended == last}
        return GrowthRecord(
            task=self.task,
            policy=self.policy,
            scores=[step.score for step in self.steps],
            added_params=[step.added_params for step in self.steps],
            slots={name: [SlotState(*step.slots[name]) for step in self.steps] for name in self.slots},
            host_params=self.host_params,
            host_alone_scores=() if self.control is None else self.control.scores,
            measure=self.measure,
            first=self.steps[0].decision,
            ends={slot: outcome for slot, outcome in judged.items() if outcome in (KEPT, PRUNED)},
            final_params=self.added_params,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: all fields, and what follows from them (``J``, ``score``, ``verdict``)."""
        fields = {name: value for name, value in vars(self).items() if name not in ("steps", "seeds")}
        plain = {name: asdict(v) if isinstance(v, Control | Compute) else v for name, v in fields.items()}
        return {
            "score": self.score,
            "J": self.J,
            "verdict": asdict(self.verdict),
            **plain,
            "seeds": [asdict(seed) for seed in self.seeds],
            "steps": [step.to_state() for step in self.steps],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], source: str = "growth.json") -> GrowthResult:
        """What :meth:`to_json` gave; what follows from the fields is computed anew.

        Raises:
            ValueError: For what does not fit; the message names ``source`` and the field.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("steps"), list):
            raise ValueError(f"'{source}': expected the result of a growth, with a list of its 'steps'")
        try:
            steps = [Step.from_state(_unknown_as_nan(step)) for step in data["steps"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{source}': field 'steps': {error!r}") from error
        plain = {name: v for name, v in data.items() if name not in ("score", "J", "verdict")}
        return replace(from_plain(cls, {**plain, "steps": []}, source), steps=steps)


def _unknown_as_nan(step: dict[str, Any]) -> dict[str, Any]:
    return {**step, **{name: math.nan for name in ("loss", "score") if step[name] is None}}
