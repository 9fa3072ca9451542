"""The reference engine: a plain loop over real modules. It defines what the environment means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from esper.actions import BLUEPRINT_NAMES, Decision
from esper.env.engine.base import Engine, RowReport
from esper.env.episode import Episode
from esper.growth.attribution import contributions
from esper.growth.governor import Governor
from esper.growth.network import GrowingNetwork
from esper.observation import RunReading
from esper.tasks import Task


ATTRIBUTION_SAMPLES = 256
"""Validation samples on which the contribution of a seed is measured; both sides of the difference see the same."""


class EpisodeData:
    """The training data of one episode and the order in which it is seen, fixed by the episode alone.

    Each pass over the data is a fresh permutation; an incomplete last batch of a pass is skipped.
    """

    def __init__(self, task: Task, episode: Episode) -> None:
        splits = task.splits()
        generator = torch.Generator().manual_seed(episode.seed)
        total = len(splits.train_x)
        keep = torch.randperm(total, generator=generator)[: episode.train_samples or total]
        self.x, self.y = splits.train_x[keep], splits.train_y[keep].clone()
        noisy = torch.rand(self.y.shape, generator=generator) < episode.label_noise
        labels = torch.randint(0, int(splits.train_y.max()) + 1, self.y.shape, generator=generator)
        self.y[noisy] = labels[noisy]
        self._generator = generator
        self._batch_size = task.batch_size
        self._order = torch.empty(0, dtype=torch.int64)

    def next_indices(self) -> Tensor:
        """Indices of the next batch, int64 ``[batch]``."""
        if len(self._order) < self._batch_size:
            self._order = torch.randperm(len(self.x), generator=self._generator)
        batch, self._order = self._order[: self._batch_size], self._order[self._batch_size :]
        return batch


def build_episode_host(task: Task, episode: Episode) -> nn.Module:
    """The untrained host of an episode; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(episode.seed)
        return task.build_host()


class HostRun:
    """One host in one episode: data, network, optimiser, history."""

    def __init__(self, task: Task, episode: Episode, blueprints: Sequence[str]) -> None:
        self.task, self.episode = task, episode
        self.data = EpisodeData(task, episode)
        model = build_episode_host(task, episode)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=episode.learning_rate)
        self.network = GrowingNetwork(
            model,
            task.slots,
            task.splits().val_x[:2],
            optimizer=self.optimizer,
            budget=episode.budget,
            blueprints=blueprints,
            seed=episode.seed,
            causal=task.causal,
        )
        self.governor = Governor(self.network, self.optimizer)
        self.decision = 0
        self.train_losses: list[float] = []
        self.val_losses: list[float] = []
        self.scores: list[float] = []
        self.rolled_back = False
        self.samples_seen = 0
        self._rng_state = torch.Generator().manual_seed(episode.seed).get_state()
        self._evaluate_and_record()

    def step(self, decision: Decision) -> None:
        """One decision: act, train an interval, evaluate, attribute; roll back if the run has diverged."""
        self.network.step(decision)
        with self._own_randomness():
            train_loss = self._train_interval()
        self.decision += 1
        self.rolled_back = self.governor.check(train_loss)
        if self.rolled_back:
            self.governor.roll_back()
        self.train_losses.append(train_loss)
        self._evaluate_and_record()
        contributions(self.network, self._evaluate_sample)
        if not self.rolled_back:
            self.governor.take_snapshot()

    def report(self) -> RowReport:
        """Readings and masks after the latest decision."""
        reading = RunReading(
            decision=self.decision,
            horizon=self.episode.horizon,
            scores=list(self.scores),
            train_losses=list(self.train_losses),
            val_losses=list(self.val_losses),
            host_params=self.network.host_params,
            added_params=self.network.added_params,
            rent=self.episode.rent,
            budget=self.episode.budget,
            learning_rate=self.episode.learning_rate,
            train_samples=len(self.data.x),
            chance_score=self.task.chance_score,
            rolled_back=self.rolled_back,
            slots=self.network.slot_readings(),
        )
        return RowReport(reading, self.network.masks(), self.samples_seen)

    def test_score(self) -> float:
        """Score on test data, in [0, 1]."""
        splits = self.task.splits()
        return self._evaluate(splits.test_x, splits.test_y)[1]

    def _train_interval(self) -> float:
        """Train ``steps_per_decision`` batches; the mean training loss."""
        model = self.network.model.train()
        total = 0.0
        last = self.task.steps_per_decision - 1
        for step in range(self.task.steps_per_decision):
            batch = self.data.next_indices()
            with self.network.measure(step == last):
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.task.loss(model(self.data.x[batch]), self.data.y[batch])
                loss.backward()
            self.optimizer.step()
            self.samples_seen += len(batch)
            total += float(loss)
        return total / self.task.steps_per_decision

    @torch.no_grad()
    def _evaluate(self, x: Tensor | None = None, y: Tensor | None = None) -> tuple[float, float]:
        """(loss, score) on validation data, or on the given data."""
        splits = self.task.splits()
        x, y = (splits.val_x, splits.val_y) if x is None or y is None else (x, y)
        output = self.network.model.eval()(x)
        return float(self.task.loss(output, y)), float(self.task.score(output, y))

    def _evaluate_sample(self) -> tuple[float, float]:
        """(loss, score) on the first validation samples: what contributions are measured on, to keep them cheap."""
        splits = self.task.splits()
        return self._evaluate(splits.val_x[:ATTRIBUTION_SAMPLES], splits.val_y[:ATTRIBUTION_SAMPLES])

    def _evaluate_and_record(self) -> None:
        loss, score = self._evaluate()
        self.val_losses.append(loss)
        self.scores.append(score)

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout and the like draw from this run's own stream, so that neighbours do not disturb each other."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng_state)
            yield
            self._rng_state = torch.get_rng_state()


class LoopEngine(Engine):
    """K :class:`HostRun`, one after the other."""

    def __init__(self, task: Task, num_hosts: int, blueprints: Sequence[str] = BLUEPRINT_NAMES) -> None:
        self.task = task
        self.num_hosts = num_hosts
        self.slot_names = task.slots
        self.blueprints = tuple(blueprints)
        self.runs: dict[int, HostRun] = {}

    def reset(self, episodes: Mapping[int, Episode]) -> dict[int, RowReport]:
        """Begin the given episodes in their rows."""
        return self._each(episodes, lambda row: self._begin(row, episodes[row]))

    def step(self, decisions: Mapping[int, Decision]) -> dict[int, RowReport]:
        """Apply one decision to each given row and train it for one interval."""
        return self._each(decisions, lambda row: self.runs[row].step(decisions[row]))

    def test_scores(self, rows: Sequence[int]) -> dict[int, float]:
        """Score of the given rows' networks on test data, in [0, 1]."""
        return {row: self.runs[row].test_score() for row in rows}

    def _begin(self, row: int, episode: Episode) -> None:
        self.runs[row] = HostRun(self.task, episode, self.blueprints)

    def _each(self, rows: Mapping[int, object], act: Callable[[int], None]) -> dict[int, RowReport]:
        for row in rows:
            act(row)
        return {row: self.runs[row].report() for row in rows}
