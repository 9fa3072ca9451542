"""What fixes one episode, and how the variants that make a controller general are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from esper.auditions import Auditions
from esper.tasks import SCHEDULES, Task

Range = tuple[float, float]


@dataclass(frozen=True)
class Episode:
    """Everything that fixes one training run besides the actions."""

    seed: int
    """Fixes the host's initial weights, the order of the data and the seeds' initial weights."""
    horizon: int
    """Number of decisions."""
    rent: float
    """Price of a doubling of parameters, in points of score."""
    budget: int | None = None
    """Cap on added parameters; `None` for no cap."""
    learning_rate: float = 1e-3
    """Of Adam, before the schedule."""
    schedule: str = "constant"
    """How the learning rate moves, by name (:data:`esper.tasks.schedules.SCHEDULES`)."""
    train_samples: int = 0
    """Number of training samples used; 0 for all."""
    label_noise: float = 0.0
    """Share of training labels replaced by random ones."""
    width: float = 1.0
    """Factor on the host's width."""
    depth: int = 1
    """Layers in each of the host's blocks."""
    interval: float = 1.0
    """Factor on the task's number of training batches between two decisions."""
    auditions: Auditions | None = None
    """What auditions in dormant slots; `None` for nothing."""
    other_rent: float | None = None
    """Another price, drawn from the same range, at which a learner may judge the same run once more; `None` where the
    price is not drawn."""

    def steps_per_decision(self, task: Task) -> int:
        """Training batches between two decisions."""
        return max(1, round(task.steps_per_decision * self.interval))

    def learning_rate_after(self, decisions: int) -> float:
        """The learning rate in the interval that begins when so many decisions are over."""
        return self.learning_rate * SCHEDULES[self.schedule](decisions, self.horizon)

    def info(self) -> dict[str, float]:
        """The episode as numbers, for ``info`` and logs; no cap and no other rent are −1, a schedule is its place."""
        return {
            "seed": float(self.seed),
            "horizon": float(self.horizon),
            "rent": self.rent,
            "budget": -1.0 if self.budget is None else float(self.budget),
            "learning_rate": self.learning_rate,
            "schedule": float(list(SCHEDULES).index(self.schedule)),
            "train_samples": float(self.train_samples),
            "label_noise": self.label_noise,
            "width": self.width,
            "depth": float(self.depth),
            "interval": self.interval,
            "other_rent": -1.0 if self.other_rent is None else self.other_rent,
        }


@dataclass(frozen=True)
class Variants:
    """Ranges from which each episode draws its conditions; ``None`` keeps the task's own value.

    Ranges are (low, high); those of ``rent``, ``budget``, ``learning_rate``, ``train_samples``, ``width`` and
    ``interval`` are drawn log-uniformly, the others uniformly.
    """

    rent: Range | None = None
    """Price of a doubling of parameters, in points of score (0.02 means two points)."""
    budget: Range | None = None
    """Cap on added parameters, as a multiple of the host's parameters."""
    horizon: Range | None = None
    """Number of decisions."""
    learning_rate: Range | None = None
    """Factor on the task's learning rate."""
    schedule: tuple[str, ...] | None = None
    """Learning-rate schedules of which each episode draws one; `None` keeps the task's."""
    train_samples: Range | None = None
    """Share of the training samples that is used, in (0, 1]."""
    label_noise: Range | None = None
    """Share of training labels replaced by random ones, in [0, 1)."""
    width: Range | None = None
    """Factor on the host's width, rounded to quarters so that hosts can share a structure and train in one graph."""
    depth: Range | None = None
    """Layers in each of the host's blocks."""
    interval: Range | None = None
    """Factor on the number of training batches between two decisions, rounded to halves so that hosts can train in one
    graph."""

    def __post_init__(self) -> None:
        for name in ("rent", "budget", "horizon", "learning_rate", "train_samples", "width", "depth", "interval"):
            self._check(name, above=0.0)
        self._check("label_noise", above=-1e-12)
        unknown = sorted(set(self.schedule or ()) - SCHEDULES.keys())
        if unknown or self.schedule == ():
            raise ValueError(f"variant 'schedule' takes some of {', '.join(SCHEDULES)}; got {self.schedule}")

    def _check(self, name: str, above: float) -> None:
        value = getattr(self, name)
        if value is not None and not above < value[0] <= value[1]:
            raise ValueError(f"variant '{name}' takes a range (low, high) with 0 < low <= high, got {value}")

    def draw(self, task: Task, seed: int, *, rent: float, budget: int | None, host_params: int) -> Episode:
        """The episode of ``task`` with this ``seed``; the same seed gives the same episode."""
        rng = np.random.default_rng([seed, 0x5EED])

        def log_uniform(bounds: Range | None, default: float) -> float:
            share = rng.random()  # always drawn, so that one range does not shift the others
            return default if bounds is None else float(bounds[0] * (bounds[1] / bounds[0]) ** share)

        def uniform(bounds: Range | None, default: float) -> float:
            share = rng.random()
            return default if bounds is None else float(bounds[0] + (bounds[1] - bounds[0]) * share)

        factor = log_uniform(self.budget, 0.0)
        samples = len(task.splits().train_x)
        episode = Episode(
            seed=seed,
            rent=log_uniform(self.rent, rent),
            budget=int(factor * host_params) if self.budget is not None else budget,
            horizon=round(uniform(self.horizon, task.horizon)),
            learning_rate=task.learning_rate * log_uniform(self.learning_rate, 1.0),
            train_samples=max(task.batch_size, int(samples * log_uniform(self.train_samples, 1.0))),
            label_noise=uniform(self.label_noise, 0.0),
            width=max(1, round(4 * log_uniform(self.width, 1.0))) / 4,
            depth=round(uniform(self.depth, 1)),
        )
        # Drawn last, so that a seed's episode is otherwise what it was before intervals could be drawn.
        other_rent = log_uniform(self.rent, rent)
        interval = max(1, round(2 * log_uniform(self.interval, 1.0))) / 2
        schedule = task.schedule if self.schedule is None else self.schedule[int(rng.integers(len(self.schedule)))]
        other = None if self.rent is None else other_rent
        return replace(episode, interval=interval, other_rent=other, schedule=schedule)


NO_VARIANTS = Variants()
"""Every episode under the task's own conditions."""
