"""The reference engine: a plain loop over real modules. It defines what the environment means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from esper.actions import ALL_BLUEPRINTS, Decision
from esper.env.engine.engine import Engine, RowReport
from esper.env.engine.run import ATTRIBUTION_SAMPLES, Run, build_episode_host
from esper.env.episode import Episode
from esper.network.attribution import contributions
from esper.network.governor import Governor
from esper.tasks import Task


class HostRun(Run):
    """One host in one episode, trained as anyone would train it."""

    def __init__(self, task: Task, episode: Episode, blueprints: Sequence[str]) -> None:
        model = build_episode_host(task, episode)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=episode.learning_rate)
        super().__init__(task, episode, blueprints, model, self.optimizer)
        self.governor = Governor(self.network, self.optimizer)
        self._rng_state = torch.Generator().manual_seed(episode.seed).get_state()
        self.record(*self._evaluate())

    def step(self, decision: Decision) -> None:
        """One decision: act, train an interval, evaluate, attribute; roll back if the run has diverged."""
        self.network.step(decision)
        with self._own_randomness():
            train_loss = self._train_interval()
        self.decision += 1
        validated = self._evaluate()
        self.rolled_back = self.governor.check(train_loss, *validated)
        if self.rolled_back:
            self.governor.roll_back()
            validated = self._evaluate()
        self.train_losses.append(train_loss)
        self.record(*validated)
        contributions(self.network, self._evaluate_sample)
        if not self.rolled_back:
            self.governor.take_snapshot()

    def test_score(self) -> float:
        """Score on test data, in [0, 1]."""
        splits = self.task.splits()
        return self._evaluate(splits.test_x, splits.test_y)[1]

    def _train_interval(self) -> float:
        """Train until the next decision; the mean training loss."""
        model = self.network.model.train()
        total, steps = 0.0, self.episode.steps_per_decision(self.task)
        for group in self.optimizer.param_groups:
            group["lr"] = self.set_learning_rate()
        for step in range(steps):
            x, y = self.data.next_batch()
            with self.network.measure(step == steps - 1):
                self.optimizer.zero_grad(set_to_none=True)
                loss = self.task.loss(model(x), y)
                loss.backward()
            self.optimizer.step()
            self.samples_seen += len(x)
            total += float(loss.detach())
        return total / steps

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

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout and the like draw from this run's own stream, so that neighbours do not disturb each other."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng_state)
            yield
            self._rng_state = torch.get_rng_state()


class LoopEngine(Engine):
    """K :class:`HostRun`, one after the other."""

    def __init__(self, task: Task, num_hosts: int, blueprints: Sequence[str] = ALL_BLUEPRINTS) -> None:
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
