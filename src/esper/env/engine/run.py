"""One host in one episode: what every engine knows about it, however it is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from esper.env.engine.engine import RowReport
from esper.env.episode import Episode
from esper.network.growing_network import GrowingNetwork
from esper.network.history import History
from esper.tasks import Task

ATTRIBUTION_SAMPLES = 256
"""Validation samples on which the contribution of a seed is measured; both sides of the difference see the same."""


class EpisodeData:
    """The training data of one episode and the order in which it is seen, fixed by the episode alone.

    Each pass over the data is a fresh permutation; an incomplete last batch of a pass is skipped. Where the task has
    phases, a pass is one over the samples of the phase that the episode is in.

    Attributes:
        samples: Which of the task's training samples are used, int64 ``[M]``.
        y: Their targets, label noise included, ``[M, ...]``.
    """

    def __init__(self, task: Task, episode: Episode) -> None:
        splits = task.splits()
        generator = torch.Generator().manual_seed(episode.seed)
        total = len(splits.train_x)
        self.samples = torch.randperm(total, generator=generator)[: episode.train_samples or total]
        y = splits.train_y[self.samples]
        noisy = torch.rand(y.shape, generator=generator) < episode.label_noise
        labels = torch.randint(0, int(splits.train_y.max()) + 1, y.shape, generator=generator)
        self.y = torch.where(noisy.to(y.device), labels.to(y), y)
        self._x = splits.train_x
        self._generator = generator
        self._task = task
        self._batches_in_all = episode.horizon * episode.steps_per_decision(task)
        self._batches_drawn = 0
        self._stretch = range(0)
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def next_indices(self) -> Tensor:
        """Places of the next batch in ``samples`` and ``y``, int64 ``[batch]``."""
        stretch = self._task.stretch(self._batches_drawn / self._batches_in_all)
        if stretch != self._stretch or len(self._order) < self._task.batch_size:
            self._stretch, self._order = stretch, self._passes(stretch)
        self._batches_drawn += 1
        batch, self._order = self._order[: self._task.batch_size], self._order[self._task.batch_size :]
        return batch

    def _passes(self, stretch: range) -> Tensor:
        """The samples of a stretch in a fresh order, several times where they do not fill a batch."""
        held = ((self.samples >= stretch.start) & (self.samples < stretch.stop)).nonzero().flatten()
        passes = math.ceil(self._task.batch_size / len(held))
        return torch.cat([held[torch.randperm(len(held), generator=self._generator)] for _ in range(passes)])

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next batch."""
        batch = self.next_indices()
        return self._x[self.samples[batch]], self.y[batch]


def build_episode_host(task: Task, episode: Episode) -> nn.Module:
    """The untrained host of an episode; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(episode.seed)
        return task.build_host(width=episode.width, depth=episode.depth)


class Run(History):
    """One host in one episode: data, growing network, history. Subclasses train it.

    Args:
        task: What is learned.
        episode: Under which conditions.
        blueprints: Names of the blueprints that may be germinated.
        model: The untrained host.
        optimizer: Takes the seeds' parameters in, where there is one optimizer per host.
    """

    def __init__(
        self,
        task: Task,
        episode: Episode,
        blueprints: Sequence[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.task, self.episode = task, episode
        self.data = EpisodeData(task, episode)
        super().__init__(
            horizon=episode.horizon,
            rent=episode.rent,
            budget=episode.budget,
            learning_rate=episode.learning_rate,
            train_samples=len(self.data),
            chance_score=task.chance_score,
        )
        self.network = GrowingNetwork(
            model,
            task.slots,
            task.splits().val_x[:2],
            optimizer=optimizer,
            budget=episode.budget,
            blueprints=blueprints,
            seed=episode.seed,
            causal=task.causal,
            auditions=episode.auditions,
        )
        self.samples_seen = 0

    def set_learning_rate(self) -> float:
        """The learning rate in the interval that begins now, which is noted."""
        self.learning_rate = self.episode.learning_rate_after(self.decision)
        return self.learning_rate

    def record(self, loss: float, score: float) -> None:
        """Enter the result of an evaluation on validation data.

        Raises:
            ValueError: If it is not finite: it is that of an untrained host, or of one that was rolled back, so no
                good state is left to go back to.
        """
        if not (math.isfinite(loss) and math.isfinite(score)):
            raise ValueError(
                f"task '{self.task.name}', episode {self.episode.seed}: expected a finite loss and score on validation "
                f"data, got {loss} and {score}, and no good state is left to go back to; check the task's data, host "
                "and loss"
            )
        super().record(loss, score)

    def report(self) -> RowReport:
        """Readings and masks after the latest decision."""
        return RowReport(self.reading(self.network), self.network.masks(), self.samples_seen)
