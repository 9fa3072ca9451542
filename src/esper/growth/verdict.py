"""Was it worth it? The grown network against the host alone, by the objective J, with the error over samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from esper.growth.result import GrowthResult
    from esper.growth.step import Step


@dataclass(frozen=True)
class Control:
    """The host alone, trained beside the growing network on the same batches."""

    scores: list[float]
    """Validation score after every step."""
    difference: float
    """Score of the grown network less that of the host alone, at the end, on validation data."""
    error: float
    """95 % of such differences lie within this much of the true one, over draws of the validation samples."""
    test_score: float
    """On test data."""


@dataclass(frozen=True)
class Compute:
    """What the training took, in FLOPs (a multiply-add as two; a backward pass as two forward passes)."""

    host: float
    """The host alone."""
    kept: float
    """Seeds that are in the network at the end."""
    gone: float
    """Seeds that are not."""
    measuring: float
    """Evaluations for contributions, more than one a step."""
    auditions: float
    """Candidates, in training."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.host + self.kept + self.gone + self.measuring + self.auditions

    def __str__(self) -> str:
        """In words: how often the host alone could have been trained."""
        parts = {"growing": self.kept, "pruned": self.gone, "measuring": self.measuring, "auditions": self.auditions}
        shares = ", ".join(f"{name} {part / self.total:.0%}" for name, part in parts.items() if part > 0)
        times = f"{self.total:.3g} FLOPs, {self.total / self.host:.2f} times those of the host alone"
        return f"{times}: {shares} of them" if shares else times


@dataclass(frozen=True)
class Verdict:
    """Whether the growth was worth it: by the objective J = score − rent · log2(parameters / host parameters)."""

    answer: Literal["worth it", "not worth it", "cannot tell", "nothing grew"]
    words: str
    """The answer, and what it rests on."""
    J: float
    """Of the grown network, on validation data."""
    host_J: float | None
    """Of the host alone: its score. ``None`` where it was not trained beside it."""
    gain: float | None
    """Score of the grown network less that of the host alone. Where that one was not trained, less what it was before
    the first seed was let in: more than this is not due to growth. ``None`` where not even that is known."""
    error: float | None
    """Half the 95 % interval of ``gain`` over validation samples; ``None`` for an estimate."""
    rent: float
    """What the network pays for its added parameters, in points of score."""


def points(value: float) -> str:
    """A difference of scores in words."""
    return f"{round(100 * value, 1) + 0.0:+.1f} points"  # adding 0 makes -0.0 a zero


def reach(result: GrowthResult) -> Verdict:
    """The verdict on a growth.

    With the host alone trained beside it, the whole 95 % interval of the gain less the rent must lie on one side of 0.
    Without, what the host would have become is not known, but until the first seed acts the network *is* the host
    alone, and training on would hardly have made that worse: so the gain since then is the most that growth can have
    brought. If that is less than the rent it was not worth it; if it is more, that shows nothing.
    """
    gain, error, host_J = _gain(result)
    numbers = (result.J, host_J, gain, error, result.rent_paid)
    size = f"{result.host_params:,} → {result.host_params + result.added_params:,} parameters"
    if result.added_params == 0:
        tried = f", after {len(result.seeds)} seeds that did not stay" if result.seeds else ""
        return Verdict("nothing grew", f"Nothing has been kept: the model is the host alone{tried}.", *numbers)
    rent = f"a rent of {100 * result.rent_paid:.1f} points ({size})"
    if gain is None:
        return Verdict("cannot tell", f"Cannot tell: how good the host is alone is not known; {rent}.", *numbers)
    beyond = gain - result.rent_paid
    if result.control is None:
        answer: Any = "not worth it" if beyond <= 0 else "cannot tell"
        found = f"at most {points(gain)} (estimated: the host alone was not trained beside it, {_before(result)})"
    else:
        assert error is not None
        answer = "worth it" if beyond > error else "not worth it" if beyond < -error else "cannot tell"
        alone = result.told(result.score - gain)
        found = f"{result.told(result.score)} against {alone} of the host alone, {points(gain)} ± {100 * error:.1f}"
    words = f"{answer.capitalize()}: {found}, for {rent}.{_most_of_it(result)}"
    return Verdict(answer, words, *numbers)


def _gain(result: GrowthResult) -> tuple[float | None, float | None, float | None]:
    """Gain in score, its error, and J of the host alone, as far as they are known."""
    if result.control is not None:
        return result.control.difference, result.control.error, result.score - result.control.difference
    before = _last_alone(result)
    if before is not None and before is result.steps[-1]:
        return 0.0, 0.0, result.score  # it is the host alone
    return (None if before is None else result.score - before.score), None, None


def _last_alone(result: GrowthResult) -> Step | None:
    """The last step before a seed acted: until then the network is the host alone, bit for bit."""
    found = None
    for step in result.steps:
        if any(alpha > 0 for _, _, alpha in step.slots.values()):
            break
        found = step
    return found


def _before(result: GrowthResult) -> str:
    alone = _last_alone(result)
    assert alone is not None
    return f"and had {result.told(alone.score)} at step {alone.decision}, before the first seed was let in"


def _most_of_it(result: GrowthResult) -> str:
    seed = result.decisive
    return "" if seed is None else f" What matters most is {seed.blueprint} in {seed.slot}: {seed.contributed}."


def paired_error(
    score: Callable[[Tensor, Tensor], Tensor],
    grown: Tensor,
    alone: Tensor,
    target: Tensor,
    groups: int = 100,
) -> float:
    """Half the 95 % interval of score(grown) − score(alone) over draws of the samples, by a jackknife over groups.

    With K groups of samples and d_k the difference of the scores without group k, the standard error is
    sqrt((K − 1) / K · Σ_k (d_k − mean)²) (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11);
    times 1.96. It holds for any score that is smooth in its samples. It is never below 3 / N: of what does not show in
    N samples, up to 3 in N may do so (the rule of three).

    Args:
        score: Of outputs and targets.
        grown: Outputs of one network, ``[N, ...]``.
        alone: Outputs of the other on the same samples, ``[N, ...]``.
        target: ``[N, ...]``.
        groups: K, where there are so many samples.
    """
    samples = len(target)
    count = min(groups, samples)
    if count < 2:
        return 3.0
    group = torch.arange(samples, device=target.device) % count
    without = []
    for k in range(count):
        rest = group != k
        without.append(float(score(grown[rest], target[rest]) - score(alone[rest], target[rest])))
    mean = sum(without) / count
    spread = math.sqrt((count - 1) / count * sum((d - mean) ** 2 for d in without))
    return max(1.96 * spread, 3 / samples)
